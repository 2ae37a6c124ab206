"""dcmtk's clients as peers. storescu may exit 0 although a C-STORE failed, so the listener's tables are asked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import (
    HEVCM10P51,
    HEVCMP51,
    JPEG2000,
    MPEG2MPHL,
    MPEG2MPML,
    MPEG4HP41,
    MPEG4HP41BD,
    MPEG4HP42STEREO,
    MPEG4HP422D,
    MPEG4HP423D,
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_listener.adapters.tables import instances
from dicom_listener.domain.part10 import part10_head
from integration.dicom_listener.peers import (
    BIG,
    DX,
    EXPLICIT,
    IMPLICIT,
    Listener,
    data_set_bytes,
    encoded,
    image,
    listening,
)

pytestmark = pytest.mark.needs("dcmtk")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects") as running:
        yield running


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode("latin-1")


def film(path: Path, syntax: str = EXPLICIT) -> str:
    """A file in that transfer syntax; compressed pixels only look like a bit stream, which nobody decodes here."""
    ds = image(size=200)
    path.write_bytes(part10_head(DX, ds.SOPInstanceUID, syntax) + encoded(ds, syntax))
    return str(ds.SOPInstanceUID)


def compressed_by_openjpeg(path: Path, syntax: str) -> None:
    ds = dcmread(path)
    ds.compress(
        UID(syntax),
        encoding_plugin="pylibjpeg",
        generate_instance_uid=False,
        **({"j2k_cr": [5]} if syntax == JPEG2000 else {}),
    )
    ds.save_as(path)


# Option of storescu: what makes the file, and its transfer syntax.
PROPOSED: dict[str, tuple[list[str], str]] = {
    "-xe": ([], EXPLICIT),
    "-xb": (["dcmconv", "+tb"], BIG),
    "-xi": (["dcmconv", "+ti"], IMPLICIT),
    "-xd": (["dcmconv", "+td"], DeflatedExplicitVRLittleEndian),
    "-xs": (["dcmcjpeg", "+e1", "+un"], JPEGLosslessSV1),
    "-xy": (["dcmcjpeg", "+eb", "+un"], JPEGBaseline8Bit),
    "-xx": (["dcmcjpeg", "+ee", "+un"], JPEGExtended12Bit),
    "-xr": (["dcmcrle"], RLELossless),
    "-xt": (["dcmcjpls", "+un"], JPEGLSLossless),
    "-xu": (["dcmcjpls", "+en", "+un"], JPEGLSNearLossless),
    "-xv": (["openjpeg"], JPEG2000Lossless),
    "-xw": (["openjpeg"], JPEG2000),
    "-xm": (["as it is"], MPEG2MPML),
    "-xh": (["as it is"], MPEG2MPHL),
    "-xn": (["as it is"], MPEG4HP41),
    "-xl": (["as it is"], MPEG4HP41BD),
    "-x2": (["as it is"], MPEG4HP422D),
    "-x3": (["as it is"], MPEG4HP423D),
    "-xo": (["as it is"], MPEG4HP42STEREO),
    "-x4": (["as it is"], HEVCMP51),
    "-x5": (["as it is"], HEVCM10P51),
}


def test_echoscu(listener: Listener, dcmtk: Callable[[str], str]) -> None:
    run(dcmtk("echoscu"), "-aec", "ECHO", "127.0.0.1", str(listener.port))


@pytest.mark.needs("dicom3tools")
@pytest.mark.parametrize("option", PROPOSED)
def test_storescu(listener: Listener, dcmtk: Callable[[str], str], tmp_path: Path, option: str) -> None:
    maker, syntax = PROPOSED[option]
    path = tmp_path / "film.dcm"
    uid = film(path, syntax if maker == ["as it is"] else EXPLICIT)
    if maker == ["openjpeg"]:
        compressed_by_openjpeg(path, syntax)
    elif maker and maker != ["as it is"]:
        run(dcmtk(maker[0]), *maker[1:], str(path), str(path))
    run(dcmtk("storescu"), option, "-R", "-aec", "ECHO", "127.0.0.1", str(listener.port), str(path))
    row = listener.instance(uid)
    assert UID(row.transfer_syntax_uid) == syntax
    padded = data_set_bytes(path) + b"\0"  # dcmtk makes the length of a deflated data set even when it sends it
    assert listener.data_set(row.object_key) in ([data_set_bytes(path), padded] if option == "-xd" else [padded[:-1]])
    stored = str(listener.root / row.object_key)
    dumps = [run(dcmtk("dcmdump"), "+L", file).partition("# Dicom-Data-Set")[2] for file in (stored, str(path))]
    assert uid in dumps[0]
    assert dumps[0] == dumps[1]
    if syntax == DeflatedExplicitVRLittleEndian:  # dciodvfy does not inflate
        run(dcmtk("dcmconv"), "+te", stored, str(path))
        stored = str(path)
    assert verdict(stored) == verdict(str(path))


def verdict(path: str) -> list[str]:
    """What dciodvfy says of the data set: a test image has its faults, but it must be readable."""
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any(line.startswith("DX") for line in lines), lines
    return lines


def test_storescu_repeats(listener: Listener, dcmtk: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    uid = film(path)
    run(dcmtk("storescu"), "--repeat", "5", "127.0.0.1", str(listener.port), str(path))
    (row,) = listener.rows(instances)
    assert (row.sop_instance_uid, row.duplicates) == (uid, 4)


def test_storescu_that_aborts(listener: Listener, dcmtk: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    uid = film(path)
    run(dcmtk("storescu"), "--abort", "--repeat", "3", "127.0.0.1", str(listener.port), str(path))
    (row,) = listener.rows(instances)
    assert (row.sop_instance_uid, row.duplicates) == (uid, 2)
    assert listener.staged() == []
