"""The method against its alternatives, at a reduced size: ``python -m echo_model.training.variants``.

Every row starts from one corpus, one frozen tower and the same budgets: left to right, RAD, and every way to fewer
steps. One seed is one folder; a run that is stopped goes on where it was, and several seeds may run at once, each in a
process of its own. `variants_table` makes the table and judges the method's claims.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from tokenizers import Tokenizer

from echo_model import demo_checkpoint_path
from echo_model.data.tokenizer import train_tokenizer
from echo_model.data.wording import Report
from echo_model.model import load_model
from echo_model.training.agreement import says_the_same
from echo_model.training.autoregressive import as_trajectories, decode_left_to_right
from echo_model.training.corpus import Corpus, training_report
from echo_model.training.dcd import Distillation, distil_loss
from echo_model.training.demo import say
from echo_model.training.demo_plan import AR_RATES, BATCH, DCD_RATES, RAD_RATES
from echo_model.training.features import Features, see_corpus
from echo_model.training.loop import Stopped
from echo_model.training.objectives import consistency_loss, dparallel_loss, t3d_loss
from echo_model.training.rollout import Trajectories, roll_out
from echo_model.training.shape import QUESTION, new_model, prompt_layout
from echo_model.training.text_stages import Loss, TextData, ar_loss, rad_loss, train_text
from echo_model.training.texts import tokenise
from echo_model.training.trajectory_store import StoredTrajectories, join, write_shards
from echo_model.training.variants_rows import ROWS, Measure, Row, measure_row
from echo_model.training.variants_table import collect

CORPUS_SEED: Final = 3
_LONGEST = 192
_AT_ONCE = 64
_CANONICAL = 0.6
_TAU = 0.85


@dataclass(frozen=True)
class Budget:
    """What every row of a seed gets, in samples; a student of two rounds shares its samples between them."""

    phantoms: int = 8_000
    layers: int = 2
    ar: int = 8_000
    rad: int = 8_000
    answers: int = 2_048
    student: int = 4_096
    measured: int = 200

    def scaled(self, factor: float) -> Budget:
        """The same for ``factor`` times the work."""
        parts = {key: max(32, int(value * factor)) for key, value in asdict(self).items() if key != "layers"}
        return replace(self, **parts)


#: Students of stage 3 by name: block length, the answers they learn from, and how.
DCD: Final[dict[str, tuple[int, str, Distillation]]] = {
    "dcd4": (4, "plain4", Distillation(top_k=8)),
    "dcd8": (8, "plain8", Distillation(top_k=8)),
    "dcd16": (16, "plain16", Distillation(top_k=8)),
    "dcd_unweighted": (8, "plain8", Distillation(top_k=8, weighted=False)),
    "dcd_no_eos": (8, "plain8", Distillation(top_k=8, eos_weight=0.0)),
    "dcd_reverse": (8, "plain8", Distillation(top_k=8, reverse=True)),
    "dcd_canonical": (8, "canonical8", Distillation(top_k=8)),
    "dcd_agreeing": (8, "agreeing8", Distillation(top_k=8)),
    "dcd_canonical_ce": (8, "canonical8", Distillation(top_k=8, ce_weight=1.0)),
    "ce_canonical_ar": (8, "canonical_ar", Distillation(top_k=1, weighted=False)),
    "dcd_raw": (8, "raw8", Distillation(top_k=8)),
}


class Seed:
    """The models of one seed. Asking for a model trains what is missing on the way to it."""

    def __init__(self, seed: int, budget: Budget, work: Path, tower: Path, stopped: Callable[[], bool]) -> None:
        self.seed, self.budget, self.stopped = seed, budget, stopped
        self.work = work / f"seed{seed}"
        self.work.mkdir(parents=True, exist_ok=True)
        reports = [training_report(CORPUS_SEED, index) for index in range(budget.phantoms)]
        self.texts = {"normalised": reports, "raw": [_raw(report) for report in reports]}
        every = [report.text for group in self.texts.values() for report in group[:4_000]]
        self.tokenizer: Tokenizer = train_tokenizer(every, QUESTION, 1_800)
        self.model = new_model(self.tokenizer, seed, layers=budget.layers)
        self.model.model.visual.load_state_dict(load_model(tower).model.model.visual.state_dict())
        self.fresh = copy.deepcopy(self.model.state_dict())
        self.layout = prompt_layout(self.model, self.tokenizer)
        self.features = _features(work, budget, self.model.model.visual, stopped)
        self.data = {
            style: TextData(self.features, [tokenise(self.tokenizer, report) for report in group], self.layout)
            for style, group in self.texts.items()
        }

    def load(self, name: str) -> Any:
        """The model ``name`` with its weights, trained if it is not there yet."""
        file = self.work / f"{name}.pt"
        if not file.exists():
            self._train(name)
            part = file.with_suffix(".part")
            torch.save(self.model.state_dict(), part)
            part.replace(file)
            for state in self.work.glob(f"{name}*.state.pt"):
                state.unlink()
        self.model.load_state_dict(torch.load(file, weights_only=True))
        return self.model.eval()

    def _train(self, name: str) -> None:
        if name in ("ar", "ar_raw"):
            self.model.load_state_dict(self.fresh)
            data = self.data["raw" if name.endswith("raw") else "normalised"]
            self._stage(
                name, lambda rows, step: ar_loss(self.model, data, rows, 5.0), data.lengths, self.budget.ar, AR_RATES
            )
        elif name.startswith("rad"):
            block, raw = (8, True) if name == "rad_raw" else (int(name[3:]), False)
            data = self.data["raw" if raw else "normalised"]
            self.load("ar_raw" if raw else "ar")

            def noisy(rows: Any, step: int) -> Loss:
                return rad_loss(self.model, data, rows, block, self._random(step))

            self._stage(name, noisy, data.lengths, self.budget.rad, RAD_RATES)
        elif name in DCD:
            block, answers, options = DCD[name]
            stored = self.answers(answers)
            self.load("rad_raw" if name == "dcd_raw" else f"rad{block}")

            def distilled(places: Any, step: int) -> Loss:
                features, paths = self._paths(stored, places)
                return distil_loss(self.model, self.layout, features, paths, block, options)

            self._student(name, distilled, stored, self.budget.student)
        else:
            self._train_other(name)

    def _train_other(self, name: str) -> None:
        """The students of other methods, from the same model and the same answers as plain DCD."""
        stored = self.answers("plain8")
        self.load("rad8")
        if name == "t3d":
            half = self.budget.student // 2
            for number in (1, 2):  # the reference is the student at the beginning of the round
                if number == 2:
                    self._resume_weights("t3d-1")
                reference = copy.deepcopy(self.model).requires_grad_(False).eval()

                def told(places: Any, step: int, reference: Any = reference, number: int = number) -> Loss:
                    features, paths = self._paths(stored, places)
                    noise = self._random(step + number * 100_000)
                    return t3d_loss(self.model, reference, self.layout, features, paths, 8, noise)

                self._student(f"t3d-{number}", told, stored, half)
            return
        method = dparallel_loss if name == "dparallel" else consistency_loss

        def other(places: Any, step: int) -> Loss:
            features, paths = self._paths(stored, places)
            return method(self.model, self.layout, features, paths, 8, self._random(step))

        self._student(name, other, stored, self.budget.student)

    def _resume_weights(self, stage: str) -> None:
        state = torch.load(self.work / f"{stage}.state.pt", weights_only=True)
        self.model.load_state_dict(state["weights"])

    def _student(self, name: str, loss: Callable[[Any, int], Loss], stored: StoredTrajectories, samples: int) -> None:
        self._stage(name, loss, stored.lengths, samples, DCD_RATES)

    def _stage(
        self, name: str, loss: Callable[[Any, int], Loss], lengths: Any, samples: int, rates: tuple[float, float]
    ) -> None:
        train_text(
            name,
            self.model,
            self.work,
            loss,
            lengths,
            samples=max(BATCH, samples),
            rate=rates[0],
            muon_rate=rates[1],
            batch=BATCH,
            first_row=self.seed * 1_000 * BATCH,
            say=lambda line: say(f"seed {self.seed}  {line}"),
            stopped=self.stopped,
        )

    def _random(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 10_000_019 + step)

    def _paths(self, stored: StoredTrajectories, places: Any) -> tuple[torch.Tensor, Trajectories]:
        return self.features.rows(stored.rows[places]), stored.batch(places)

    def answers(self, name: str) -> StoredTrajectories:
        """What the teacher ``name`` wrote: plain or canonical with its block length, canonical_ar, or raw8.

        agreeing8 is canonical8 without the answers that find anything else than the phantom's own report.
        """
        if name == "agreeing8":
            self.answers("canonical8")
            stored = StoredTrajectories(self.work / "answers-canonical8", self.layout.eos, self._agrees)
            say(f"seed {self.seed}  answers {name}: {stored.counts}")
            return stored
        if name == "canonical_ar":
            model = self.load("ar")
        else:
            model = self.load(
                "rad_raw" if name == "raw8" else f"rad{name.removeprefix('plain').removeprefix('canonical')}"
            )
        block = 8 if name in ("canonical_ar", "raw8") else int("".join(c for c in name if c.isdigit()))
        canonical = _CANONICAL if name.startswith("canonical") else None

        def decode(rows: range) -> Trajectories:
            if self.stopped():
                raise Stopped(f"answers {name} stopped before {rows.start}")
            parts = []
            for at in range(0, len(rows), _AT_ONCE):
                features = self.features.rows(np.array(rows[at : at + _AT_ONCE]))
                if name == "canonical_ar":
                    written = decode_left_to_right(
                        model, self.layout, features, max_tokens=_LONGEST, canonical=canonical
                    )
                    parts.append(as_trajectories(*written, self.layout, block))
                else:
                    keys: Any = {"tau": _TAU, "top_k": 8, "max_tokens": _LONGEST}
                    parts.append(roll_out(model, self.layout, features, block, canonical=canonical, **keys))
            return join(parts, self.layout.eos)

        folder = self.work / f"answers-{name}"
        write_shards(folder, decode, self.budget.answers)
        stored = StoredTrajectories(folder, self.layout.eos)
        say(f"seed {self.seed}  answers {name}: {stored.counts}")
        return stored

    def _agrees(self, row: int, answer: list[int]) -> bool:
        return says_the_same(self.tokenizer.decode(answer), self.texts["normalised"][row].text)

    def measure(self, row: Row) -> dict[str, Any]:
        """The figures of a row, kept in the folder."""
        file = self.work / "rows" / f"{row.name}.json"
        if not file.exists():
            judge = copy.deepcopy(self.load("ar_raw" if row.style == "raw" else "ar"))
            texts = [report.text for report in self.texts[row.style]]
            measure = Measure(self.tokenizer, self.layout, judge, texts, self.budget.measured, self.work / "checkpoint")
            figures = measure_row(row, self.load(row.model), measure)
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            say(f"seed {self.seed}  {row.name}: {figures}")
        result: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return result


def _raw(report: Report) -> Report:
    """The report by exception as a text to learn; all of it depends on the image."""
    return Report(report.raw, report.raw, ((0, len(report.raw)),))


def _features(work: Path, budget: Budget, visual: Any, stopped: Callable[[], bool]) -> Features:
    """Visual tokens of the corpus, shared by all seeds; only one process may make them."""
    corpus = Corpus(work / "corpus", CORPUS_SEED, budget.phantoms)
    return see_corpus(visual, corpus, say=say, stopped=stopped)


def run(
    seeds: Sequence[int], budget: Budget, work: Path, *, rows: Sequence[Row], tower: Path, stopped: threading.Event
) -> None:
    """Measure ``rows`` for every seed. Raises Stopped once ``stopped`` is set."""
    for seed in seeds:
        models = Seed(seed, budget, work, tower, stopped.is_set)
        for row in rows:
            models.measure(row)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m echo_model.training.variants", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for models and figures; resumed from")
    parser.add_argument("--json", type=Path, help="add the seeds in the folder to the table there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="only these (default: all)")
    parser.add_argument("--tower", type=Path, default=demo_checkpoint_path(), help="checkpoint whose tower is used")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full budget")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    budget = Budget().scaled(args.scale) if args.scale != 1 else Budget()
    rows = [row for row in ROWS if args.rows is None or row.name in args.rows]
    try:
        run(args.seeds, budget, args.work, rows=rows, tower=args.tower, stopped=stopped)
    except Stopped as end:
        say(f"{end}; the same command goes on from here")
    if args.json is not None:
        earlier = json.loads(args.json.read_text("utf-8")) if args.json.exists() else None
        table = collect(args.work, asdict(budget), earlier)
        args.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
