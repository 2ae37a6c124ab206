"""Judge FHIR R4 files with the HL7 validator, offline: one Java process for any number of files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from servers import env


@dataclass(frozen=True)
class Finding:
    """One remark of the validator."""

    file: Path
    severity: str
    """fatal, error, warning or information."""
    location: str
    """A FHIRPath expression, empty when the whole file is meant."""
    message: str

    @property
    def is_error(self) -> bool:
        """Whether the file breaks the specification."""
        return self.severity in ("fatal", "error")

    def __str__(self) -> str:
        return f"{self.file.name}: {self.severity} at {self.location or 'the whole file'}: {self.message}"


def validate(files: Iterable[Path], *, timeout_s: float = 900.0) -> list[Finding]:
    """All findings about `files` (JSON or XML), in their order; an empty list means that nothing was to be said.

    Loading the definitions takes about ten seconds, each file some tenths: give all files in one call.
    Raises RuntimeError when the validator is not built, failed, or left a file out.
    """
    paths = [Path(file) for file in files]
    class_path = env.validator_class_path()
    if class_path is None:
        raise RuntimeError("the HL7 validator is not built; run `make services`")
    if not paths:
        return []
    command = ["java", "-Xmx768m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", class_path, "echo.Validate"]
    run = subprocess.run(
        [*command, *map(str, paths)], capture_output=True, encoding="utf-8", timeout=timeout_s, check=False
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    judged = {line["file"] for line in lines if "done" in line}
    left_out = [path for path in paths if str(path) not in judged]
    if run.returncode != 0 or left_out:
        raise RuntimeError(f"the validator left out {len(left_out)} of {len(paths)} files: {run.stderr[-2000:]}")
    return [
        Finding(Path(line["file"]), line["severity"], line["location"], line["message"])
        for line in lines
        if "done" not in line
    ]


def errors(files: Iterable[Path]) -> list[str]:
    """The findings that make a file invalid, as lines to print in a failed assertion."""
    return [str(finding) for finding in validate(files) if finding.is_error]
