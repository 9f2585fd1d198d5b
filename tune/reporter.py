"""The driver's side of a running sweep: hears every report, keeps it, tells it, and reminds ASHA of it.

    <sweep>/metrics.jsonl     one line a validation of any trial: the learning curves

Ray Tune pickles its callbacks and its scheduler, and after a restart goes on with the pickled ones; its scheduler
then has forgotten what trials have reported. So both hold nothing here: what they need is looked up in the sweep that
is being followed, which knows the reports from its file. Knows no bundles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from model.bundle.run_directory import METRICS as METRICS_FILE
from model.errors import from_plain
from model.storage import exists, join, read_bytes, write_bytes
from tune.config import TuneConfig
from tune.trial import FAILURE, LAST, METRICS, SCORE, decoded, scored
from tune.trials import in_words, reason_in, without_nan


@dataclass
class Following:
    """A sweep that is being followed; lines for people go to `say`, and each new report is told to `heard`."""

    directory: str
    tuning: TuneConfig
    say: Callable[[str], None]
    heard: Callable[[], None]
    reports: list[dict[str, Any]] = field(default_factory=list)
    ray_trials: list[Any] = field(default_factory=list)

    def add(self, trial: Any, result: dict[str, Any]) -> None:
        """Keeps a report; one that a restarted trial makes again replaces the former."""
        line = {"trial": name_of(trial), **result[METRICS]}
        earlier = [each for each in self.reports if each["trial"] != line["trial"] or each["step"] < line["step"]]
        self.reports = [*earlier, line]
        lines = [json.dumps(without_nan(report)) for report in self.reports]
        write_bytes(join(self.directory, METRICS_FILE), ("\n".join(lines) + "\n").encode())
        self.heard()

    def of_trial(self, trial: Any) -> list[dict[str, Any]]:
        """What Ray Tune was told of a trial so far."""
        name = name_of(trial)
        return [
            {SCORE: scored(self.tuning, report), "step": report["step"], "epoch": report["epoch"]}
            for report in self.reports
            if report["trial"] == name
        ]


_followed: ContextVar[Following] = ContextVar("_followed")


@contextmanager
def following(
    directory: str, tuning: TuneConfig, say: Callable[[str], None], heard: Callable[[], None]
) -> Iterator[Following]:
    """Follows a sweep until the block ends; earlier reports of it are known. `heard` is called with each new one."""
    path = join(directory, METRICS_FILE)
    lines = read_bytes(path).decode().splitlines() if exists(path) else []
    followed = Following(directory, tuning, say, heard, [json.loads(line) for line in lines])
    token = _followed.set(followed)
    try:
        yield followed
    finally:
        _followed.reset(token)


def name_of(trial: Any) -> str:
    """The number of a trial's point; where a searcher made it, Ray's id."""
    number = trial.config["point"].get("number")
    return trial.trial_id if number is None else f"{number:03d}"


def directory_of(trial: Any) -> str:
    """The name of a trial's directory."""
    return f"trial_{name_of(trial)}"


class Reporter(ray.tune.Callback):  # type: ignore[misc]
    """Ray Tune's callback; see the module for why it holds nothing."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or goes on."""
        followed = _followed.get()
        settings = decoded(followed.tuning, trial.config["point"]["settings"])
        verb = "goes on" if followed.of_trial(trial) else "starts"
        followed.say(f"trial {name_of(trial)} {verb}: {in_words(settings)}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has validated, or has failed by a mistake of the user's. ASHA has decided before."""
        followed, name = _followed.get(), name_of(trial)
        if FAILURE in result:
            followed.say(f"trial {name} failed: {from_plain(result[FAILURE])}")
            return
        followed.add(trial, result)
        metric = followed.tuning.metric
        end = "; finished" if result[LAST] else "; stopped early" if result.get("done") else ""
        followed.say(f"trial {name}: step {result['step']}, {metric} {result[METRICS][metric]:.4f}{end}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process has died; Ray Tune starts it again."""
        followed = _followed.get()
        followed.say(f"trial {name_of(trial)} is started again from its latest report: {_why(trial)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process has died too often."""
        followed = _followed.get()
        followed.say(f"trial {name_of(trial)} failed: {_why(trial)}")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """All trials, in the order of Ray Tune's results."""
        _followed.get().ray_trials = list(trials)


def _why(trial: Any) -> str:
    """From the driver's own file: the error itself reaches the storage only later."""
    return reason_in(Path(trial.error_file).read_text())


class RemindedAsha(AsyncHyperBandScheduler):  # type: ignore[misc]
    """ASHA that is told, when a trial is added again after a restart, what it had reported."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Puts the trial's earlier reports on record; nothing is decided anew."""
        super().on_trial_add(tune_controller, trial)
        for report in _followed.get().of_trial(trial):
            self.on_trial_result(tune_controller, trial, report)
