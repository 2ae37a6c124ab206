"""How much each stage of the demonstration model's training sees, and the seeds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

FILE: Final = "plan.json"

BATCH: Final = 16
#: Learning rates of AdamW and of Muon in the stages of the language model.
AR_RATES: Final = (1.5e-3, 0.02)
RAD_RATES: Final = (1e-3, 0.012)
DCD_RATES: Final = (7e-4, 0.008)


@dataclass(frozen=True)
class Plan:
    """Samples of every stage, and the seeds. All fits into four hours of one core (see docs/training.md).

    The tower learns in two runs: `tower_first` samples at the full rate (stopped before the end of its cosine,
    `tower_first_schedule`), then new heads and `tower_samples` at a lower one. `agreeing`: of the
    teacher's reports only those are learnt from that find what the phantom's own report finds.
    """

    train_seed: int = 2
    weights_seed: int = 7
    noise_seed: int = 1_000_000
    phantoms: int = 24_000
    vocabulary: int = 1_800
    tokenizer_reports: int = 12_000
    tower_first: int = 18_000
    tower_first_schedule: int = 22_000
    tower_heads: int = 2_400
    tower_samples: int = 20_000
    ar_samples: int = 20_000
    rad_samples: int = 40_000
    teacher_reports: int = 5_120
    dcd_samples: int = 16_000
    decisive_weight: float = 5.0
    rad_decisive_weight: float = 3.0
    tau: float = 0.85
    canonical: float = 0.6
    agreeing: bool = True
    top_k: int = 8
    ce_weight: float = 1.0
    dcd_decisive_weight: float = 2.0
    checked: int = 128
    evaluated: int = 1_000

    def scaled(self, factor: float) -> Plan:
        """The same plan for ``factor`` times the training time."""
        if factor <= 0:
            raise ValueError("the scale must be positive")

        def part(value: int, least: int = 0) -> int:
            return max(least, int(value * factor))

        return replace(
            self,
            phantoms=part(self.phantoms, 128),
            tokenizer_reports=part(self.tokenizer_reports, 400),
            tower_first=part(self.tower_first),
            tower_first_schedule=part(self.tower_first_schedule),
            tower_heads=part(self.tower_heads),
            tower_samples=part(self.tower_samples),
            ar_samples=part(self.ar_samples),
            rad_samples=part(self.rad_samples),
            teacher_reports=part(self.teacher_reports, 64),
            dcd_samples=part(self.dcd_samples),
            checked=min(self.checked, part(self.checked, 8)),
            evaluated=min(self.evaluated, part(self.evaluated, 8)),
        )

    def of_folder(self, work: Path) -> Plan:
        """The plan that a work folder was begun with; this one, written down, when there is none yet.

        Whoever wants another one for stages that have not begun edits the file. Raises ValueError for a file that is
        not a plan.
        """
        file = work / FILE
        if not file.exists():
            file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
            return self
        raw: Any = json.loads(file.read_text("utf-8"))
        if not isinstance(raw, dict) or set(raw) != set(asdict(self)):
            raise ValueError(f"{file} does not hold exactly the keys {', '.join(asdict(self))}")
        return Plan(**raw)
