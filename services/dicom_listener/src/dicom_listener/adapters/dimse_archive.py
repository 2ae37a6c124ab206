"""An archive that speaks DIMSE: C-FIND says what there is, C-MOVE sends it to our own Storage SCP."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom import AE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from dicom_listener.adapters.commitments import PeerAddress
from dicom_listener.adapters.transport import Requested
from dicom_listener.domain.fetch import ArchivedSeries, ArchivedStudy, FetchFailed, Problem
from dicom_listener.domain.uids import is_uid
from dicom_listener.handlers.fetch import Wish

MODELS = (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove)
_PENDING, _SOME_FAILED = (0xFF00, 0xFF01), 0xB000
_MOST_MATCHES = 5000
_STUDY_KEYS = (
    "StudyInstanceUID",
    "AccessionNumber",
    "PatientID",
    "IssuerOfPatientID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "ModalitiesInStudy",
)
_SERIES_KEYS = ("SeriesInstanceUID", "Modality", "BodyPartExamined", "SeriesDescription")


@dataclass(frozen=True)
class DimseOptions:
    """Who asks whom. `ae_title` is our own, under which the archive knows where to send objects."""

    ae_title: str
    archive_ae_title: str
    address: PeerAddress
    connect_seconds: float
    answer_seconds: float
    tls: ssl.SSLContext | None = None


class DimseArchive:
    """Implements `handlers.fetch.Archive` in the Study Root model (PS3.4 annex C). Thread-safe."""

    def __init__(self, options: DimseOptions) -> None:
        self._options = options
        self._requested = Requested()

    def studies(self, wish: Wish) -> Sequence[ArchivedStudy]:
        """Those that the wish names."""
        uid, accession = wish.study_instance_uid or "", wish.accession_number or ""
        found = self._study_query(StudyInstanceUID=uid, AccessionNumber=accession)
        return [
            each for each in found if uid in ("", each.study_instance_uid) and accession in ("", each.accession_number)
        ]

    def studies_of_patient(self, patient_id: str, until: date) -> Sequence[ArchivedStudy]:
        """Taken on that day or before."""
        return self._study_query(PatientID=patient_id, StudyDate=f"-{until:%Y%m%d}")

    def _study_query(self, **keys: str) -> Sequence[ArchivedStudy]:
        with self._association(StudyRootQueryRetrieveInformationModelFind) as assoc:
            matches = _find(assoc, "STUDY", dict.fromkeys(_STUDY_KEYS, "") | keys)
        return [
            ArchivedStudy(
                study_instance_uid=_text(ds, "StudyInstanceUID"),
                accession_number=_text(ds, "AccessionNumber"),
                patient_id=_text(ds, "PatientID"),
                issuer_of_patient_id=_text(ds, "IssuerOfPatientID"),
                date=_text(ds, "StudyDate"),
                time=_text(ds, "StudyTime"),
                description=_text(ds, "StudyDescription"),
                modalities=_texts(ds, "ModalitiesInStudy"),
            )
            for ds in matches
            if is_uid(_text(ds, "StudyInstanceUID"))
        ]

    def series(self, study_instance_uid: str) -> Sequence[ArchivedSeries]:
        """Of one study."""
        with self._association(StudyRootQueryRetrieveInformationModelFind) as assoc:
            return _series(assoc, study_instance_uid)

    def instances(self, study_instance_uid: str) -> Collection[str]:
        """SOP Instance UIDs of one study: asked for series by series, as the hierarchy demands."""
        with self._association(StudyRootQueryRetrieveInformationModelFind) as assoc:
            return {
                uid
                for series in _series(assoc, study_instance_uid)
                for ds in _find(
                    assoc,
                    "IMAGE",
                    {
                        "StudyInstanceUID": study_instance_uid,
                        "SeriesInstanceUID": series.series_instance_uid,
                        "SOPInstanceUID": "",
                    },
                )
                if is_uid(uid := _text(ds, "SOPInstanceUID"))
            }

    def retrieve(self, study_instance_uid: str, stop: threading.Event) -> None:
        """C-MOVE of the study to ourselves. Sub-operations that failed are found by what is missing afterwards."""
        identifier = _identifier("STUDY", {"StudyInstanceUID": study_instance_uid})
        with self._association(StudyRootQueryRetrieveInformationModelMove) as assoc:
            for status, _ in assoc.send_c_move(
                identifier, self._options.ae_title, StudyRootQueryRetrieveInformationModelMove
            ):
                code = _status(status)
                if code in _PENDING:
                    if stop.is_set():
                        raise FetchFailed(Problem.UNREACHABLE, "the listener is stopping")
                    continue
                if code in (0x0000, _SOME_FAILED):
                    return
                raise FetchFailed(Problem.REFUSED, f"C-MOVE status {code:04X}")
        raise FetchFailed(Problem.INVALID_ANSWER, "C-MOVE without an end")

    def interrupt(self) -> None:
        """The listener stops: cut off what runs, and begin nothing more."""
        self._requested.interrupt()

    def close(self) -> None:
        """Each association ends with its question: there is nothing to close."""

    @contextlib.contextmanager
    def _association(self, model: str) -> Iterator[Any]:
        with self._requested.one() as handlers:
            assoc = self._associate(model, handlers)
            try:
                if not assoc.accepted_contexts:
                    raise FetchFailed(Problem.REFUSED, "the archive does not offer C-FIND or C-MOVE")
                yield assoc
                if assoc.is_established:
                    assoc.release()
            except (RuntimeError, ValueError, OSError) as error:  # what pynetdicom raises when the association breaks
                raise FetchFailed(Problem.UNREACHABLE, type(error).__name__) from error
            finally:
                if assoc.is_established:
                    assoc.abort()  # answers may still be under way

    def _associate(self, model: str, handlers: list[Any]) -> Any:
        options = self._options
        ae = AE(ae_title=options.ae_title)
        ae.connection_timeout = ae.acse_timeout = options.connect_seconds
        ae.dimse_timeout = ae.network_timeout = options.answer_seconds
        ae.add_requested_context(model)
        host = options.address.host
        try:
            assoc = ae.associate(
                host,
                options.address.port,
                ae_title=options.archive_ae_title,
                tls_args=(options.tls, host) if options.address.tls and options.tls is not None else None,
                evt_handlers=handlers,
            )
        except (RuntimeError, OSError) as error:
            raise FetchFailed(Problem.UNREACHABLE, type(error).__name__) from error
        if assoc.is_rejected:
            answer = assoc.acceptor.primitive
            parts = [answer.result, answer.result_source, answer.diagnostic] if answer is not None else []
            raise FetchFailed(Problem.REFUSED, "association " + "/".join(map(str, parts)))
        if not assoc.is_established:
            raise FetchFailed(Problem.UNREACHABLE)
        return assoc


def _series(assoc: Any, study_instance_uid: str) -> list[ArchivedSeries]:
    keys = dict.fromkeys(_SERIES_KEYS, "") | {"StudyInstanceUID": study_instance_uid}
    return [
        ArchivedSeries(
            _text(ds, "SeriesInstanceUID"),
            _text(ds, "Modality").upper(),
            _text(ds, "BodyPartExamined"),
            _text(ds, "SeriesDescription"),
        )
        for ds in _find(assoc, "SERIES", keys)
        if is_uid(_text(ds, "SeriesInstanceUID"))
    ]


def _find(assoc: Any, level: str, keys: dict[str, str]) -> list[Dataset]:
    matches: list[Dataset] = []
    identifier = _identifier(level, keys)
    for status, ds in assoc.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind):
        code = _status(status)
        if code not in _PENDING and code != 0x0000:
            raise FetchFailed(Problem.REFUSED, f"C-FIND status {code:04X}")
        if ds is not None:
            matches.append(ds)
        if len(matches) > _MOST_MATCHES:
            raise FetchFailed(Problem.INVALID_ANSWER, "too many matches")
    return matches


def _identifier(level: str, keys: dict[str, str]) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def _status(status: Dataset) -> int:
    if "Status" not in status:  # the association broke, or no answer came in time
        raise FetchFailed(Problem.UNREACHABLE, "no answer")
    return int(status.Status)


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return "" if value is None else str(value).strip()


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    value = ds.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(str(each).strip() for each in (value if isinstance(value, MultiValue) else [value]))
