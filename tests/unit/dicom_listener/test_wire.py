"""Bytes that are read and written without the library, beside what the library makes of the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_items import PresentationDataValueItem

from dicom_listener.domain.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, part10_head
from dicom_listener.domain.wire import p_data_of_command, presentation_data_values, store_response

UIDS = st.lists(st.integers(0, 10**9), min_size=1, max_size=6).map(lambda parts: "2.25." + ".".join(map(str, parts)))


def library_pdu(values: list[tuple[int, bytes]]) -> bytes:
    pdu = P_DATA_TF()
    for context_id, value in values:
        item = PresentationDataValueItem()
        item.presentation_context_id = context_id
        item.presentation_data_value = value
        pdu.presentation_data_value_items.append(item)
    return pdu.encode()


@given(
    st.lists(st.tuples(st.integers(0, 127).map(lambda n: 2 * n + 1), st.binary(min_size=1, max_size=50)), max_size=5)
)
def test_values_of_a_pdu_are_those_that_the_library_put_in(values: list[tuple[int, bytes]]) -> None:
    read = presentation_data_values(memoryview(library_pdu(values))[6:])
    assert [(context_id, bytes(value)) for context_id, value in read] == values


@pytest.mark.parametrize(
    "body", [b"\0\0\0", b"\0\0\0\0\1", b"\0\0\0\x09\1\3abc", b"\0\0\0\2\1\3" + b"\0\0\0\x01", b"\xff\xff\xff\xff\1\3"]
)
def test_items_that_do_not_fill_the_pdu_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="an item"):
        presentation_data_values(memoryview(body))


def library_response(sop_class_uid: str, sop_instance_uid: str, message_id: int, status: int) -> tuple[Any, bytes]:
    primitive = C_STORE()
    primitive.MessageID = primitive.MessageIDBeingRespondedTo = message_id
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = UID(sop_class_uid), UID(sop_instance_uid)
    primitive.Status = status
    message = C_STORE_RSP()
    message.primitive_to_message(primitive)
    (pdu,) = message.encode_msg(1, 0)
    ((_, value),) = pdu.presentation_data_value_list
    return message, value[1:]


@given(UIDS, UIDS, st.integers(0, 65535), st.sampled_from([0x0000, 0x0117, 0xA700, 0xC000]))
def test_the_answer_to_a_c_store_is_the_library_s(
    sop_class_uid: str, sop_instance_uid: str, message_id: int, status: int
) -> None:
    _, expected = library_response(sop_class_uid, sop_instance_uid, message_id, status)
    assert store_response(sop_class_uid, sop_instance_uid, message_id, status) == expected


@given(st.sampled_from([0, 7, 64, 128, 4096]))
def test_a_peer_with_small_pdus_gets_the_answer_in_parts(maximum_length: int) -> None:
    command = store_response("1.2.840.10008.5.1.4.1.1.1.1", "2.25.17", 9, 0)
    pdus = list(p_data_of_command(5, command, maximum_length))
    assert maximum_length == 0 or max(len(pdu) - 6 for pdu in pdus) <= maximum_length
    message = DIMSEMessage()
    for number, pdu in enumerate(pdus):
        decoded = P_DATA_TF()
        decoded.decode(pdu)
        assert message.decode_msg(decoded.to_primitive()) == (number == len(pdus) - 1)
    assert (message.context_id, message.command_set.AffectedSOPInstanceUID) == (5, "2.25.17")


@given(UIDS, UIDS, UIDS)
def test_the_head_of_a_file_is_the_library_s(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
) -> None:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta)
    assert part10_head(sop_class_uid, sop_instance_uid, transfer_syntax_uid) == bytes(128) + b"DICM" + buffer.getvalue()
