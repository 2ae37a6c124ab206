"""The report model behind the worker's port: the only file that knows `echo_model`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

import torch

from echo_model import DeadlineExceeded, EchoModelError, ImageError, Report, ReportEngine
from inference_worker.domain import Draft, DraftFinding, DraftSentence, Fault
from inference_worker.ports import GreyImage


def load_engine(path: str, device: str, max_slots: int, torch_threads: int) -> ReportEngine:
    """The engine of this process; a checkpoint that cannot be used ends it with status 2 and a message."""
    if torch_threads:
        torch.set_num_threads(torch_threads)
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return ReportEngine.from_pretrained(path, device=wanted, max_slots=max_slots)
    except (EchoModelError, OSError) as error:
        sys.stderr.write(f"wrong setting ECHO_MODEL: is {path!r}; the checkpoint cannot be used: {error}\n")
    except (RuntimeError, AssertionError) as error:  # torch's way of saying that there is no such device, or no room
        sys.stderr.write(f"wrong setting ECHO_DEVICE: is {device!r}; the model cannot be put there: {error}\n")
    raise SystemExit(2)


class EngineModel:
    """`ports.ReportModel` on a `ReportEngine`."""

    def __init__(self, engine: ReportEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._active = 0
        self._active_since = 0.0

    @property
    def model_id(self) -> str:
        """The checkpoint's name."""
        return self._engine.loaded.model_id

    @property
    def model_version(self) -> str:
        """The start of the SHA-256 of its weights."""
        return self._engine.loaded.revision

    def generate(self, images: Sequence[GreyImage], timeout_s: float) -> Draft:
        """Run the engine; its own errors become faults with a code."""
        with self._lock:
            if self._active == 0:
                self._active_since = time.monotonic()
            self._active += 1
        try:
            return _draft(self._engine.generate(list(images), timeout=timeout_s))
        except DeadlineExceeded as error:
            raise Fault("deadline_exceeded") from error
        except ImageError as error:
            raise Fault("image_too_large" if error.code == "too_large" else "image_unusable") from error
        finally:
            with self._lock:
                self._active -= 1

    def stalled_s(self) -> float:
        """Since the engine's last step, or since there is work again."""
        with self._lock:
            if self._active == 0:
                return 0.0
            return time.monotonic() - max(self._engine.last_step_at, self._active_since)


def _draft(report: Report) -> Draft:
    return Draft(
        text=report.text,
        findings=report.findings,
        impression=report.impression,
        sentences=tuple(DraftSentence(s.section, s.text, s.confidence, s.flags) for s in report.sentences),
        structured_findings=tuple(
            DraftFinding(name, mention.state, None if mention.side == "none" else mention.side, mention.sentence)
            for name, mention in report.structured_findings.items()
        ),
        flags=report.flags,
        out_of_domain_score=report.domain_score,
        tokens=report.stats.tokens,
        forward_passes=report.stats.forward_passes,
        tokens_per_forward=report.stats.tokens_per_forward,
    )
