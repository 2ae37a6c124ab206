"""Writes a phantom as DICOM files: Digital X-Ray Image Storage - For Presentation, one patient and study a phantom.

The frontal view and, where it is wanted, the lateral one are a series each.

The only module of this package that needs pydicom (extra ``dicom``). Identifiers say what they are: ``PHANTOM^<n>``,
``PHANTOM-<n>``; UIDs are derived from the series and the number under 2.25 (ISO/IEC 9834-8), so they repeat.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from echo_model.data.lateral import LateralView
from echo_model.data.phantoms import Phantom

DX_PRESENTATION: Final = "1.2.840.10008.5.1.4.1.1.1.1"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
PIXEL_SPACING_MM: Final = 350.0 / 224
"""A chest of 350 mm over the width of a phantom."""


@dataclass(frozen=True)
class _View:
    """What the header says of a projection; ``prefix`` tells its UIDs from those of the study's other view."""

    position: str
    orientation: tuple[str, str]
    code: str
    meaning: str
    series_number: int
    prefix: str


_FRONTAL: Final = _View("PA", ("L", "F"), "272479007", "Postero-anterior", 1, "")
_LATERAL: Final = _View("LL", ("P", "F"), "399173006", "Left lateral", 2, "lateral ")


def phantom_uid(seed: int, index: int, kind: str) -> str:
    """UID of a phantom's ``kind`` (study, series, instance): 2.25 and a 128-bit number, at most 44 characters."""
    digest = hashlib.sha256(f"PhantomCXR/{seed}/{index}/{kind}".encode()).digest()[:16]
    number = bytearray(digest)
    number[6] = (number[6] & 0x0F) | 0x80  # a UUID of version 8, variant 1
    number[8] = (number[8] & 0x3F) | 0x80
    return f"2.25.{int.from_bytes(bytes(number), 'big')}"


def stored_pixels(
    phantom: Phantom, image: npt.NDArray[np.uint8] | None = None
) -> tuple[npt.NDArray[np.uint16], int, bool]:
    """Pixels as stored, bits stored (12 or 16) and whether they are inverted (MONOCHROME1, one phantom in five).

    ``image``: another view of the phantom than the frontal one; all views of a phantom are stored alike.
    """
    image = phantom.image if image is None else image
    draw = hashlib.sha256(f"PhantomCXR/{phantom.seed}/{phantom.index}/storage".encode()).digest()
    bits = 12 if draw[0] % 2 else 16
    inverted = draw[1] % 5 == 0
    high = (1 << bits) - 1
    pixels = (image.astype(np.uint32) * high + 127) // 255
    return (high - pixels if inverted else pixels).astype(np.uint16), bits, inverted


def phantom_dataset(phantom: Phantom, lateral: LateralView | None = None) -> Any:
    """The phantom as a ``pydicom.Dataset`` with file meta information: its frontal view, or the lateral one given."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID

    view = _FRONTAL if lateral is None else _LATERAL
    instance = phantom_uid(phantom.seed, phantom.index, f"{view.prefix}instance")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(DX_PRESENTATION)
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE)
    meta.ImplementationClassUID = UID(phantom_uid(0, 0, "implementation"))
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = DX_PRESENTATION, instance
    _patient_and_study(ds, phantom, view)
    _acquisition(ds, phantom, view)
    _pixels(ds, *stored_pixels(phantom, None if lateral is None else lateral.image))
    return ds


def _patient_and_study(ds: Any, phantom: Phantom, view: _View) -> None:
    seed, index = phantom.seed, phantom.index
    number = f"{seed}-{index}"
    day, minute = index % 28 + 1, (index * 7) % 1440
    ds.PatientName = f"PHANTOM^{number}"
    ds.PatientID = f"PHANTOM-{number}"
    ds.PatientBirthDate = f"{1930 + (index * 13) % 70:04d}{(index * 5) % 12 + 1:02d}{(index * 11) % 28 + 1:02d}"
    ds.PatientSex = "FM"[index % 2]
    ds.StudyInstanceUID = phantom_uid(seed, index, "study")
    ds.SeriesInstanceUID = phantom_uid(seed, index, f"{view.prefix}series")
    ds.StudyID = str(index % 10_000)
    ds.AccessionNumber = f"PH{seed % 100_000:05d}{index:07d}"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"202601{day:02d}"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = f"{minute // 60:02d}{minute % 60:02d}00"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Synthetic chest radiograph"
    ds.SeriesDescription = f"PhantomCXR {view.position}"
    ds.SeriesNumber, ds.InstanceNumber = view.series_number, 1


def _acquisition(ds: Any, phantom: Phantom, view: _View) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def code(value: str, scheme: str, meaning: str) -> Any:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        return item

    ds.Modality = "DX"
    ds.Manufacturer = "echo-cxr PhantomCXR"
    ds.ManufacturerModelName = "PhantomCXR"
    ds.DeviceSerialNumber = str(phantom.seed)
    ds.SoftwareVersions = "1"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = view.position
    ds.ImageLaterality = "U"
    ds.PatientOrientation = list(view.orientation)
    ds.PatientOrientationCodeSequence = Sequence([code("10904000", "SCT", "Erect")])
    ds.PositionerType = "NONE"
    ds.ViewCodeSequence = Sequence([code(view.code, "SCT", view.meaning)])
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence([])
    ds.AnatomicRegionSequence = Sequence([code("51185008", "SCT", "Chest")])
    ds.AcquisitionContextSequence = Sequence([])
    ds.DetectorType = "DIRECT"
    ds.ImagerPixelSpacing = [f"{PIXEL_SPACING_MM:.6f}"] * 2
    ds.ImageComments = "Synthetic phantom, no patient"


def _pixels(ds: Any, pixels: npt.NDArray[np.uint16], bits: int, inverted: bool) -> None:
    ds.ImageType = ["DERIVED", "PRIMARY", ""]
    ds.DerivationDescription = "Drawn by PhantomCXR"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, 0
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverted else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    ds.WindowCenter, ds.WindowWidth = str(1 << (bits - 1)), str(1 << bits)
    ds.LossyImageCompression = "00"
    ds.BurnedInAnnotation = "NO"
    ds.PixelData = pixels.astype("<u2").tobytes()


def write_phantom(phantom: Phantom, path: Path, lateral: LateralView | None = None) -> None:
    """Write a view, as `phantom_dataset` takes it, in the file format of PS3.10, explicit VR little endian."""
    phantom_dataset(phantom, lateral).save_as(path, enforce_file_format=True)
