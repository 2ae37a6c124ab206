"""dcmtk's clients as peers. storescu may exit 0 although a C-STORE failed, so the listener's tables are asked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLosslessSV1

from dicom_listener.adapters.tables import instances
from integration.dicom_listener.peers import Listener, image, listening

pytestmark = pytest.mark.needs("dcmtk")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listening(f"sqlite:///{tmp_path}/l.sqlite3", tmp_path / "objects") as running:
        yield running


def film(path: Path) -> str:
    ds = image(size=200)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return str(ds.SOPInstanceUID)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_echoscu(listener: Listener, dcmtk: Callable[[str], str]) -> None:
    run(dcmtk("echoscu"), "-aec", "ECHO", "127.0.0.1", str(listener.port))


@pytest.mark.parametrize(
    ("option", "compress", "syntax"),
    [
        ("-xe", None, "1.2.840.10008.1.2.1"),
        ("-xb", ["dcmconv", "+tb"], "1.2.840.10008.1.2.2"),
        ("-xi", None, "1.2.840.10008.1.2"),
        ("-xd", None, "1.2.840.10008.1.2.1.99"),
        ("-xs", ["dcmcjpeg", "+e1", "+un"], JPEGLosslessSV1),
        ("-xy", ["dcmcjpeg", "+eb", "+un"], "1.2.840.10008.1.2.4.50"),
        ("-xr", ["dcmcrle"], "1.2.840.10008.1.2.5"),
        ("-xt", ["dcmcjpls", "+un"], "1.2.840.10008.1.2.4.80"),
    ],
)
def test_storescu(
    listener: Listener,
    dcmtk: Callable[[str], str],
    tmp_path: Path,
    option: str,
    compress: list[str] | None,
    syntax: str,
) -> None:
    path = tmp_path / "film.dcm"
    uid = film(path)
    if compress is not None:
        run(dcmtk(compress[0]), *compress[1:], str(path), str(path))
    run(dcmtk("storescu"), option, "-aec", "ECHO", "127.0.0.1", str(listener.port), str(path))
    row = listener.instance(uid)
    assert UID(row.transfer_syntax_uid) == syntax
    run(dcmtk("dcmdump"), str(listener.root / row.object_key))


def test_storescu_that_aborts(listener: Listener, dcmtk: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    uid = film(path)
    run(dcmtk("storescu"), "--abort", "--repeat", "3", "127.0.0.1", str(listener.port), str(path))
    (row,) = listener.rows(instances)
    assert (row.sop_instance_uid, row.duplicates) == (uid, 2)
    assert listener.staged() == []
