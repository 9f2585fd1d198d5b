"""What Ray Tune and Ray Train hold at the end of a sweep, as our `Trial`s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray.train

from model.bundle.run_directory import RAY_TRAIN
from model.errors import from_plain
from model.storage import exists, join
from pipelines.config import RunConfig
from tune.config import DEFAULT_TRIALS, TuneConfig
from tune.points import points
from tune.reporter import name_of
from tune.trial import FAILURE, LAST, METRICS, SCORE, WORST, decoded
from tune.trials import Status, Trial, reason_of

Report = tuple[Any, dict[str, Any]]  # a checkpoint and what was reported with it


def collected(config: RunConfig, tuning: TuneConfig, results: Any, ray_trials: Sequence[Any]) -> tuple[Trial, ...]:
    """All trials by name; those that Ray Tune had not come to, too."""
    found = [_trial(config, tuning, result, trial) for result, trial in zip(results, ray_trials, strict=True)]
    if tuning.search == "optuna":
        missing = (tuning.trials or DEFAULT_TRIALS) - len(found)
        return (*found, *(Trial("-", {}, "not started") for _ in range(missing)))
    known = {trial.name for trial in found}
    planned = [Trial(f"{i:03d}", point, "not started") for i, point in enumerate(points(config, tuning))]
    return tuple(sorted([*found, *(t for t in planned if t.name not in known)], key=lambda trial: trial.name))


def _trial(config: RunConfig, tuning: TuneConfig, result: Any, trial: Any) -> Trial:
    last = result.metrics or {}
    reports = _reports(config, tuning, result, trial)
    error = from_plain(last[FAILURE]) if FAILURE in last else result.error
    made = [last, *(metrics for _, metrics in reports)]
    known = Trial(
        name=name_of(trial),
        settings=decoded(tuning, trial.config["point"]["settings"]),
        status=_status(last, error),
        steps=max(each.get("step", 0) for each in made),
        epochs=max(each.get("epoch", 0.0) for each in made),
        seconds=last.get("time_total_s", 0.0),
        reason=None if error is None else reason_of(error),
        error=error,
    )
    return known if not reports else _with_best(known, reports)


def _with_best(trial: Trial, reports: Sequence[Report]) -> Trial:
    checkpoint, report = min(reports, key=lambda each: (each[1][SCORE], each[1]["step"]))
    score = report[SCORE] if report[SCORE] < WORST else float("inf")
    values = {**vars(trial), "score": score, "metrics": report[METRICS], "step": report["step"]}
    return Trial(**(values | {"checkpoint": checkpoint}))


def _status(last: dict[str, Any], error: BaseException | None) -> Status:
    """`done` is Ray Tune's word for a trial that it has ended: its own function's end, or ASHA's decision."""
    if error is not None:
        return "failed"
    if last.get(LAST):
        return "finished"
    return "stopped early" if last.get("done") else "unfinished"


def _reports(config: RunConfig, tuning: TuneConfig, result: Any, trial: Any) -> list[Report]:
    """A trial's best and latest report, with the checkpoints that were kept of them."""
    if tuning.workers_per_trial == 1:
        return list(result.best_checkpoints or ())
    path = join(config.directory, RAY_TRAIN, trial.trial_id)
    if not exists(join(path, "checkpoint_manager_snapshot.json")):
        return []
    return list(ray.train.Result.from_path(path).best_checkpoints or ())
