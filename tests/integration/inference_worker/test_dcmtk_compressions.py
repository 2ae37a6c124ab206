"""Frames that dcmtk's encoders wrote, which is what many PACS send: JPEG processes, JPEG-LS, run lengths, deflate."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from unit.inference_worker.test_compressions import COLOUR, EIGHT, VALUES
from unit.inference_worker.test_pixels import DECODER, dataset, rises, saved

pytestmark = [pytest.mark.needs("dcmtk"), pytest.mark.filterwarnings("ignore:::pydicom")]

# Name of the compression: program, options, transfer syntax it gives, and whether every value comes back as it was.
ENCODERS: dict[str, tuple[str, list[str], str, bool]] = {
    "JPEG lossless, first prediction": ("dcmcjpeg", ["+e1"], "1.2.840.10008.1.2.4.70", True),
    "JPEG lossless, any prediction": ("dcmcjpeg", ["+el", "+sv", "6"], "1.2.840.10008.1.2.4.57", True),
    "JPEG extended, 12 bits": ("dcmcjpeg", ["+ee", "+q", "95"], "1.2.840.10008.1.2.4.51", False),
    "JPEG-LS lossless": ("dcmcjpls", ["+el"], "1.2.840.10008.1.2.4.80", True),
    "JPEG-LS near lossless": ("dcmcjpls", ["+en", "+md", "2"], "1.2.840.10008.1.2.4.81", False),
    "run lengths": ("dcmcrle", [], "1.2.840.10008.1.2.5", True),
    "deflated": ("dcmconv", ["+td"], "1.2.840.10008.1.2.1.99", True),
    "big endian": ("dcmconv", ["+tb"], "1.2.840.10008.1.2.2", True),
}
BASELINE = ("dcmcjpeg", ["+eb", "+q", "95"], "1.2.840.10008.1.2.4.50", False)


def encoded(
    content: bytes, encoder: tuple[str, list[str], str, bool], folder: Path, dcmtk: Callable[[str], str]
) -> bytes:
    program, options, syntax, _ = encoder
    source, target = folder / "in.dcm", folder / "out.dcm"
    source.write_bytes(content)
    done = subprocess.run(
        [dcmtk(program), *options, str(source), str(target)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    result = target.read_bytes()
    meta = pydicom.dcmread(io.BytesIO(result), specific_tags=["SOPClassUID"]).file_meta
    assert meta.TransferSyntaxUID == syntax
    return result


@pytest.mark.parametrize(
    ("compression", "values"),
    [
        (compression, values)
        for compression in ENCODERS
        for values in ("12 bits", "8 bits", "signed", "inverted with a window")
        if (compression, values) != ("JPEG-LS near lossless", "signed")  # dcmtk does not write it
    ],
)
def test_grey_by_dcmtk(compression: str, values: str, tmp_path: Path, dcmtk: Callable[[str], str]) -> None:
    encoder = ENCODERS[compression]
    pixels, bits, elements = VALUES[values]
    if values == "signed" and compression == "JPEG extended, 12 bits":
        pixels, bits = (pixels // 16).astype(np.int16), 12  # no more bits than the process has
    plain = saved(dataset(pixels, bits, **elements))
    picture = DECODER.decode(io.BytesIO(encoded(plain, encoder, tmp_path, dcmtk)))
    if encoder[3]:
        assert (picture == DECODER.decode(io.BytesIO(plain))).all()
    assert rises(picture, tolerance=8)


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
def test_baseline_by_dcmtk(colour: bool, tmp_path: Path, dcmtk: Callable[[str], str]) -> None:
    plain = saved(dataset(COLOUR if colour else EIGHT, 8))
    picture = DECODER.decode(io.BytesIO(encoded(plain, BASELINE, tmp_path, dcmtk)))
    assert rises(picture, tolerance=8)
