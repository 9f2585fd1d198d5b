"""Trials after a sweep: what became of each, which is best, and why one failed. Plain values; starts nothing.

<sweep>/trials.jsonl     one line a trial
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model.errors import DynamicRnnError
from model.settings.messages import quoted

Status = Literal["finished", "stopped early", "failed", "unfinished", "not started"]

PROCESS_DIED = "its process has died (often: out of memory)"


@dataclass(frozen=True)
class Trial:
    """One trial. `metrics` and `step` are of its best report by the sweep's metric, `steps` is how far it came."""

    name: str
    settings: dict[str, Any]
    status: Status
    score: float = math.inf
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    steps: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    reason: str | None = None
    error: BaseException | None = field(default=None, repr=False, compare=False)
    checkpoint: Any = field(default=None, repr=False, compare=False)

    @property
    def line(self) -> str:
        """The trial as JSON on one line."""
        names = ("name", "settings", "status", "step", "steps", "epochs", "seconds", "reason", "metrics")
        return json.dumps(without_nan({name: getattr(self, name) for name in names}), ensure_ascii=False)


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The trial with the lowest score; a failed one, or one whose metric never was a number, cannot be it."""
    usable = [trial for trial in trials if trial.checkpoint is not None and trial.status != "failed"]
    return min((trial for trial in usable if math.isfinite(trial.score)), key=lambda trial: trial.score, default=None)


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings for one line: `cell_type lstm, num_units [64]`."""
    return ", ".join(f"{short_name(name)} {value_words(value)}" for name, value in settings.items())


def short_name(setting: str) -> str:
    """A setting without its room: no two rooms have one of the same name."""
    return setting.partition(".")[2]


def value_words(value: Any) -> str:
    """A value as people write it: numbers rounded, words without quotes."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else quoted(value)


def reason_of(error: BaseException) -> str:
    """Why a trial failed, on one line; what Ray raises holds a whole traceback."""
    cause = own_error(error) or getattr(error, "cause", None)
    if isinstance(cause, DynamicRnnError):
        return str(cause)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {cause}".splitlines()[0]
    return reason_in(str(error))


def reason_in(text: str) -> str:
    """The line that tells most in what Ray says of a failure: a traceback's last, or that the process is gone."""
    if "actor died" in text or "actor is dead" in text:
        return PROCESS_DIED
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray gives no reason"


def own_error(error: BaseException | None) -> DynamicRnnError | None:
    """The mistake of the user's that lies behind an error of Ray's, if one does."""
    while error is not None:
        if isinstance(error, DynamicRnnError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def without_nan(value: Any) -> Any:
    """Numbers that JSON lacks as null."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
