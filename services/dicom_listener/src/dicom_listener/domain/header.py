"""What the events say about a study and its instances, taken from one object's header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dicom_listener.domain.encoded import Buffer, read_elements
from dicom_listener.domain.refusals import Reason, Refused
from dicom_listener.domain.uids import is_uid
from dicom_listener.domain.values import Header, join, parse_date_time, parse_zone, tag

_KEYWORDS = (
    "SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyDate ContentDate AcquisitionDate "
    "AcquisitionDateTime StudyTime ContentTime AcquisitionTime AccessionNumber "
    "IssuerOfAccessionNumberSequence LocalNamespaceEntityID UniversalEntityID Modality InstitutionName "
    "ProcedureCodeSequence RequestedProcedureCodeSequence CodeValue LongCodeValue URNCodeValue "
    "CodingSchemeDesignator CodeMeaning StudyDescription SeriesDescription TimezoneOffsetFromUTC PatientName "
    "PatientID IssuerOfPatientID IssuerOfPatientIDQualifiersSequence PatientBirthDate PatientSex PatientAge "
    "BodyPartExamined ProtocolName ViewPosition StudyInstanceUID SeriesInstanceUID StudyID InstanceNumber "
    "Laterality ImageLaterality PhotometricInterpretation NumberOfFrames Rows Columns BurnedInAnnotation "
    "RequestAttributesSequence RequestedProcedureID PlacerOrderNumberImagingServiceRequest"
)
_WANTED = frozenset(tag(keyword) for keyword in _KEYWORDS.split(" "))


@dataclass(frozen=True)
class ObjectHeader:
    """The index of one object. `study` and `instance` have the field names of `imaging.study.completed.v1`."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    study: dict[str, Any]
    instance: dict[str, Any]

    @property
    def accession_number(self) -> str | None:
        """AccessionNumber (0008,0050), blank as None."""
        value: str | None = self.study["order"]["accession_number"]
        return value

    @property
    def patient_id(self) -> str | None:
        """PatientID (0010,0020), blank as None."""
        value: str | None = self.study["patient"]["patient_id"]
        return value


def read_header(data: Buffer, start: int, transfer_syntax_uid: str) -> ObjectHeader:
    """Index the data set that begins at `start`; raises `Refused` if it is damaged or lacks a UID."""
    header = Header(read_elements(data, start, transfer_syntax_uid, _WANTED))
    uids = {
        keyword: header.uid(keyword)
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    }
    for keyword, uid in uids.items():
        if not uid:
            raise Refused(Reason.MISSING_UID, keyword)
        if not is_uid(uid):
            raise Refused(Reason.INVALID_UID, keyword)
    return ObjectHeader(
        sop_class_uid=uids["SOPClassUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        study_instance_uid=uids["StudyInstanceUID"],
        series_instance_uid=uids["SeriesInstanceUID"],
        study=study_fields(header),
        instance=instance_fields(header),
    )


def study_fields(header: Header) -> dict[str, Any]:
    """Patient, order and study level fields."""
    request = header.item("RequestAttributesSequence")
    birth_date = header.date("PatientBirthDate")
    started = join(header.date("StudyDate"), header.time("StudyTime"))
    zone = parse_zone(header.text("TimezoneOffsetFromUTC", 16) or "")
    if started and "T" in started and zone:
        started += zone
    sex = (header.code("PatientSex", 16) or "")[:1]
    qualifiers = header.item("IssuerOfPatientIDQualifiersSequence")
    accession_issuer = header.item("IssuerOfAccessionNumberSequence")
    return {
        "patient": {
            "patient_id": header.identifier("PatientID", 64),
            "issuer_of_patient_id": header.identifier("IssuerOfPatientID", 256)
            or qualifiers.identifier("UniversalEntityID", 256),
            "patient_name": header.text("PatientName", 324),
            "patient_birth_date": birth_date.isoformat() if birth_date else None,
            "patient_sex": sex if sex in ("M", "F", "O") and sex else None,
            "patient_age": header.text("PatientAge", 16),
        },
        "order": {
            "accession_number": header.identifier("AccessionNumber", 64),
            "issuer_of_accession_number": accession_issuer.identifier("LocalNamespaceEntityID", 256)
            or accession_issuer.identifier("UniversalEntityID", 256),
            "requested_procedure_id": header.identifier("RequestedProcedureID", 64)
            or request.identifier("RequestedProcedureID", 64),
            "placer_order_number": header.identifier("PlacerOrderNumberImagingServiceRequest", 64)
            or request.identifier("PlacerOrderNumberImagingServiceRequest", 64),
            "procedure_code": _code(header.item("ProcedureCodeSequence"))
            or _code(header.item("RequestedProcedureCodeSequence"))
            or _code(request.item("RequestedProcedureCodeSequence")),
        },
        "study_id": header.text("StudyID", 16),
        "study_description": header.text("StudyDescription", 64),
        "study_started_at": started,
        "institution_name": header.text("InstitutionName", 64),
    }


def instance_fields(header: Header) -> dict[str, Any]:
    """Series and image level fields."""
    acquired = parse_date_time(header.text("AcquisitionDateTime", 32) or "")
    acquired = acquired or join(header.date("AcquisitionDate"), header.time("AcquisitionTime"))
    acquired = acquired or join(header.date("ContentDate"), header.time("ContentTime"))
    frames = header.count("NumberOfFrames")
    if frames is None and header.has_pixel_data:
        frames = 1  # PS3.3 C.7.6.6: the element is there only in multi-frame objects
    return {
        "modality": header.code("Modality", 16),
        "body_part_examined": header.code("BodyPartExamined", 64),
        "view_position": header.code("ViewPosition", 16),
        "image_laterality": header.code("ImageLaterality", 16) or header.code("Laterality", 16),
        "series_description": header.text("SeriesDescription", 64),
        "protocol_name": header.text("ProtocolName", 64),
        "image_type": header.texts("ImageType", 64)[:16],
        "photometric_interpretation": header.code("PhotometricInterpretation", 16),
        "rows": header.unsigned_short("Rows"),
        "columns": header.unsigned_short("Columns"),
        "number_of_frames": frames,
        "has_pixel_data": header.has_pixel_data,
        "burned_in_annotation": header.code("BurnedInAnnotation", 16),
        "instance_number": header.integer("InstanceNumber"),
        "acquired_at": acquired,
    }


def _code(item: Header) -> dict[str, str | None] | None:
    value = (
        item.identifier("CodeValue", 64) or item.identifier("LongCodeValue", 64) or item.identifier("URNCodeValue", 64)
    )
    if value is None:
        return None
    return {
        "value": value,
        "scheme": item.text("CodingSchemeDesignator", 64),
        "meaning": item.text("CodeMeaning", 256),
    }


def merged(older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """Fields of `older`, its blanks filled from `newer`; inside `patient` and `order`, too."""
    result: dict[str, Any] = {}
    for name in older.keys() | newer.keys():
        old, new = older.get(name), newer.get(name)
        if name in ("patient", "order") and isinstance(old, dict) and isinstance(new, dict):
            result[name] = merged(old, new)
        else:
            result[name] = new if old is None else old
    return result
