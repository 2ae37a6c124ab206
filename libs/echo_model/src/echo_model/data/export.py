"""Exports phantoms as files: PNG, optionally DICOM, and one line of truth each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from echo_model.data.lateral import lateral_view
from echo_model.data.phantoms import Phantom, generate_phantom


def truth(phantom: Phantom) -> dict[str, Any]:
    """The line of ``labels.jsonl`` of a phantom: findings with side, both report texts."""
    return {
        "id": f"{phantom.index:05d}",
        "seed": phantom.seed,
        "findings": {name: {"present": f.present, "side": f.side} for name, f in phantom.findings.items()},
        "report": phantom.report,
        "raw_report": phantom.raw_report,
    }


def export_phantoms(out_dir: Path, count: int, seed: int, dicom: bool = False, lateral: bool = False) -> None:
    """Write ``count`` phantoms of the series ``seed``: ``NNNNN.png`` (+ ``.dcm``) and ``labels.jsonl``.

    ``lateral``: the lateral view as well, ``NNNNN-lateral.png`` (+ ``.dcm``), whose name the line then has under
    ``lateral``. The folder is made; files of the same names are replaced. Raises ValueError for a count below 1,
    OSError as the file system does, ModuleNotFoundError when DICOM is wanted without pydicom.
    """
    if count < 1:
        raise ValueError(f"at least one phantom is wanted, not {count}")
    if dicom:
        from echo_model.data.dicom import write_phantom
    out_dir.mkdir(parents=True, exist_ok=True)
    with (out_dir / "labels.jsonl").open("w", encoding="utf-8") as labels:
        for index in range(count):
            phantom = generate_phantom(seed, index)
            line = truth(phantom)
            Image.fromarray(phantom.image).save(out_dir / f"{line['id']}.png")
            if dicom:
                write_phantom(phantom, out_dir / f"{line['id']}.dcm")
            if lateral:
                view, name = lateral_view(phantom), f"{line['id']}-lateral"
                Image.fromarray(view.image).save(out_dir / f"{name}.png")
                if dicom:
                    write_phantom(phantom, out_dir / f"{name}.dcm", view)
                line["lateral"] = name
            labels.write(json.dumps(line, ensure_ascii=False) + "\n")
