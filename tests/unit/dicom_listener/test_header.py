"""Header extraction from encoded data sets, good and bad."""

from __future__ import annotations

import json
import os
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from dicom_listener.domain.header import ObjectHeader, merged, read_header
from dicom_listener.domain.refusals import Reason, Refused

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG_LS = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.80"


def chest(**changes: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.SOPInstanceUID = "1.2.3.4"
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.1"
    ds.PatientID = "PHANTOM-1"
    ds.PatientName = "PHANTOM^ONE"
    ds.PatientSex = "F"
    ds.PatientBirthDate = "19600229"
    ds.AccessionNumber = "EX-0001"
    ds.Modality = "DX"
    ds.StudyDate = "20260105"
    ds.StudyTime = "075830.5"
    ds.Rows, ds.Columns = 4, 6
    ds.BitsAllocated = 8
    ds.PixelData = bytes(24)
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def encoded(ds: Dataset, transfer_syntax_uid: str = EXPLICIT) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = transfer_syntax_uid == IMPLICIT
    buffer.is_little_endian = transfer_syntax_uid != BIG
    write_dataset(buffer, ds)
    return buffer.getvalue()


def header_of(ds: Dataset, transfer_syntax_uid: str = EXPLICIT) -> ObjectHeader:
    return read_header(encoded(ds, transfer_syntax_uid), 0, transfer_syntax_uid)


def reason_of(data: bytes, transfer_syntax_uid: str = EXPLICIT) -> Reason:
    with pytest.raises(Refused) as caught:
        read_header(data, 0, transfer_syntax_uid)
    return caught.value.reason


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_a_full_header(syntax: str) -> None:
    ds = chest(TimezoneOffsetFromUTC="+0100", AcquisitionDateTime="20260105075900.25+0100", InstanceNumber="7")
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "CXR2", "99LOCAL", "Chest, two views"
    ds.ProcedureCodeSequence = Sequence([item])
    request = Dataset()
    request.RequestedProcedureID = "RP1"
    ds.RequestAttributesSequence = Sequence([request])
    header = header_of(ds, syntax)
    assert (header.sop_class_uid, header.study_instance_uid) == ("1.2.840.10008.5.1.4.1.1.1.1", "1.2.3")
    assert header.study["patient"] == {
        "patient_id": "PHANTOM-1",
        "issuer_of_patient_id": None,
        "patient_name": "PHANTOM^ONE",
        "patient_birth_date": "1960-02-29",
        "patient_sex": "F",
        "patient_age": None,
    }
    assert header.study["order"]["procedure_code"] == {
        "value": "CXR2",
        "scheme": "99LOCAL",
        "meaning": "Chest, two views",
    }
    assert header.study["order"]["requested_procedure_id"] == "RP1"
    assert header.accession_number == "EX-0001"
    assert header.study["study_started_at"] == "2026-01-05T07:58:30.5+01:00"
    image = header.instance
    assert (image["rows"], image["columns"], image["number_of_frames"]) == (4, 6, 1)
    assert image["has_pixel_data"]
    assert image["image_type"] == ["ORIGINAL", "PRIMARY", ""]
    assert image["instance_number"] == 7
    assert image["acquired_at"] == "2026-01-05T07:59:00.25"


def test_undefined_lengths_and_encapsulated_pixels() -> None:
    ds = chest()
    item = Dataset()
    item.LocalNamespaceEntityID = "RIS"
    item.is_undefined_length_sequence_item = True
    ds.IssuerOfAccessionNumberSequence = Sequence([item])
    ds["IssuerOfAccessionNumberSequence"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].value = struct.pack("<HHL", 0xFFFE, 0xE000, 0) + struct.pack("<HHL", 0xFFFE, 0xE000, 4) + b"abcd"
    data = encoded(ds)
    header = read_header(data, 0, JPEG_LS)
    assert header.study["order"]["issuer_of_accession_number"] == "RIS"
    assert header.instance["has_pixel_data"]
    assert reason_of(data[:-9], JPEG_LS) is Reason.TRUNCATED


def test_deflated() -> None:
    raw = encoded(chest(Rows=2000, Columns=2000, PixelData=bytes(4_000_000)))
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = deflate.compress(raw) + deflate.flush()
    assert read_header(data, 0, DEFLATED).instance["rows"] == 2000
    assert reason_of(data[: len(data) // 2], DEFLATED) is Reason.TRUNCATED
    assert reason_of(b"\xff" * 200, DEFLATED).is_kept
    assert read_header(raw, 0, DEFLATED).instance["rows"] == 2000  # only labelled so


def test_a_deflate_bomb_is_looked_at_only_so_far() -> None:
    deflate = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    raw = encoded(chest(PixelData=None))
    data = deflate.compress(raw + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 400 * 2**20))
    zeros = bytes(2**20)
    data += b"".join(deflate.compress(zeros) for _ in range(100)) + deflate.flush()
    assert len(data) < 2**20
    assert read_header(data, 0, DEFLATED).instance["has_pixel_data"]


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_missing_and_invalid_uids(keyword: str) -> None:
    assert reason_of(encoded(chest(**{keyword: None}))) is Reason.MISSING_UID
    ds = chest()
    length = len(str(getattr(ds, keyword)))
    raw = encoded(ds)
    place = raw.index(struct.pack("<HH", ds[keyword].tag.group, ds[keyword].tag.element)) + 8
    assert (
        reason_of(raw[:place] + b"../../etc/passwd/../../x/y/z/a"[:length] + raw[place + length :])
        is Reason.INVALID_UID
    )


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a" + bytes(range(250)), b"\xff" * 500, b"<html><body>not DICOM</body></html>" * 9, b"\0" * 300]
)
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_not_dicom(data: bytes, syntax: str) -> None:
    assert reason_of(data, syntax).is_kept


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_every_truncation_is_noticed(syntax: str) -> None:
    data = encoded(chest(), syntax)
    boundaries = 0
    for length in range(1, len(data)):
        try:
            header = read_header(data[:length], 0, syntax)
        except Refused:
            continue
        assert not header.instance["has_pixel_data"]  # cut exactly between two elements, the pixels among the lost
        boundaries += 1
    assert boundaries < 10


def test_zero_padding_behind_the_data_set_is_tolerated() -> None:
    assert read_header(encoded(chest()) + bytes(511), 0, EXPLICIT).instance["has_pixel_data"]


def test_mislabelled_encoding_is_read_as_it_is() -> None:
    assert read_header(encoded(chest(), EXPLICIT), 0, IMPLICIT).patient_id == "PHANTOM-1"
    assert read_header(encoded(chest(), IMPLICIT), 0, EXPLICIT).patient_id == "PHANTOM-1"


def test_deep_sequences() -> None:
    def nested(depth: int) -> bytes:
        start = struct.pack("<HH2sHL", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
        start += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
        end = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
        return start * depth + end * depth

    plain = encoded(chest(PixelData=None))
    assert read_header(plain + nested(20), 0, EXPLICIT).patient_id == "PHANTOM-1"
    assert reason_of(plain + nested(5000)) is Reason.TOO_DEEP


def test_poor_values_become_none() -> None:
    raw = encoded(chest(PatientSex="X", PatientBirthDate="", StudyTime="", PatientID="  ", BodyPartExamined=""))
    no_such_day = read_header(raw.replace(b"20260105", b"20261399"), 0, EXPLICIT)
    assert no_such_day.study["study_started_at"] is None
    header = read_header(raw, 0, EXPLICIT)
    assert header.study["patient"]["patient_sex"] is None
    assert header.study["patient"]["patient_birth_date"] is None
    assert header.patient_id is None
    assert header.study["study_started_at"] == "2026-01-05"
    assert header.instance["body_part_examined"] is None


def raw_element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def with_raw(ds: Dataset, *elements: bytes) -> ObjectHeader:
    """Elements that pydicom would refuse to write, put behind the others: order is not checked."""
    return read_header(encoded(ds) + b"".join(elements), 0, EXPLICIT)


def test_invalid_age_and_numbers() -> None:
    header = with_raw(
        chest(),
        raw_element(0x0010, 0x1010, b"AS", b"81"),
        raw_element(0x0020, 0x0013, b"IS", b"seven "),
        raw_element(0x0028, 0x0008, b"IS", b"-3"),
        raw_element(0x0028, 0x0010, b"US", b""),
    )
    assert header.study["patient"]["patient_age"] == "81"
    assert header.instance["instance_number"] is None
    assert header.instance["rows"] is None
    assert header.instance["number_of_frames"] == 1


def test_overlong_texts_are_cut_and_overlong_identifiers_dropped() -> None:
    header = with_raw(
        chest(),
        raw_element(0x0008, 0x1030, b"LO", b"x" * 200),
        raw_element(0x0010, 0x0020, b"LO", b"9" * 66),
        raw_element(0x0018, 0x5101, b"CS", b"ANTERO-POSTERIOR-ERECT"),
    )
    assert header.study["study_description"] == "x" * 64
    assert header.patient_id is None
    assert header.instance["view_position"] == "ANTERO-POSTERIOR"


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        (b"ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        (b"ISO_IR 192", "Ωmega^山田 ".encode(), "Ωmega^山田"),
        (b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        (b"NO SUCH SET ", "Müller".encode("latin-1"), "Müller"),
        (b"", "Müller".encode(), "Müller"),
        (b"ISO_IR 192", b"bad \xff\xfe", "bad ��"),
    ],
)
def test_character_sets(charset: bytes, raw: bytes, text: str) -> None:
    raw += b" " * (len(raw) % 2)
    header = with_raw(
        chest(PatientName=None),
        raw_element(0x0008, 0x0005, b"CS", charset),
        raw_element(0x0010, 0x0010, b"PN", raw),
    )
    assert header.study["patient"]["patient_name"] == text


def test_merge_fills_blanks_only() -> None:
    older = {"patient": {"patient_id": None, "patient_sex": "F"}, "order": {"a": 1}, "study_id": None}
    newer = {"patient": {"patient_id": "P", "patient_sex": "M"}, "order": {"a": 2}, "study_id": "S"}
    assert merged(older, newer) == {
        "patient": {"patient_id": "P", "patient_sex": "F"},
        "order": {"a": 1},
        "study_id": "S",
    }


def rich() -> Dataset:
    """With something in every place that is looked at."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "XR1", "LOCAL", "Chest"
    request = Dataset()
    request.RequestedProcedureID, request.RequestedProcedureCodeSequence = "RP1", Sequence([code])
    issuer = Dataset()
    issuer.LocalNamespaceEntityID = "RIS"
    return chest(
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
        AcquisitionDateTime="20260105075830.5+0100",
        TimezoneOffsetFromUTC="+0100",
        IssuerOfAccessionNumberSequence=Sequence([issuer]),
        ProcedureCodeSequence=Sequence([code]),
        RequestAttributesSequence=Sequence([request]),
        InstanceNumber="1",
        NumberOfFrames="1",
        ImageType=["ORIGINAL", "PRIMARY"],
        PatientAge="066Y",
    )


_SYNTAXES = (IMPLICIT, EXPLICIT, BIG)
_DEFLATED_RICH = (deflate := zlib.compressobj(wbits=-zlib.MAX_WBITS)).compress(encoded(rich())) + deflate.flush()
_WHOLE = [(syntax, encoded(rich(), syntax)) for syntax in _SYNTAXES] + [(DEFLATED, _DEFLATED_RICH)]
_INJURY = st.tuples(st.integers(0, 2000), st.integers(0, 12), st.binary(max_size=12))
"""Where, how many bytes are taken out, what is put there."""


@settings(max_examples=int(os.environ.get("ECHO_FUZZ_EXAMPLES", "2000")), deadline=None)
@given(st.sampled_from(_WHOLE), st.lists(_INJURY, min_size=1, max_size=5), st.sampled_from((*_SYNTAXES, DEFLATED)))
def test_a_damaged_data_set_is_refused_or_gives_what_can_be_written_down(
    whole: tuple[str, bytes], injuries: list[tuple[int, int, bytes]], other: str
) -> None:
    syntax, data = whole
    for place, gone, new in injuries:
        place %= len(data) + 1
        data = data[:place] + new + data[place + gone :]
    for named in {syntax, other}:
        try:
            header = read_header(data, 0, named)
        except Refused:
            continue
        # As it goes to the bus and the databases: PostgreSQL takes neither NUL nor half a surrogate pair.
        text = json.dumps([header.study, header.instance], ensure_ascii=False, allow_nan=False)
        assert "\\u0000" not in text
        text.encode()
        number = header.instance["instance_number"]
        assert number is None or abs(number) < 2**63


def test_reads_behind_an_offset() -> None:
    assert read_header(b"x" * 132 + encoded(chest()), 132, EXPLICIT).patient_id == "PHANTOM-1"
