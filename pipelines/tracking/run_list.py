"""The list of the runs below a directory: what each is, how it stands, its best value. Knows no Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from model.bundle.run_directory import (
    METRICS,
    RAY_TUNE,
    RUN_YAML,
    TRIALS,
    bundle_name,
    has_begun,
    pointed,
)
from model.scoring.metric_names import TRAIN_LOSS, VALIDATION_LOSS
from model.storage import exists, is_remote, join, list_directories, read_bytes
from pipelines.tracking.run_status import _status, shown_status

ENDED_EARLY = ("failed", "interrupted", "stopped")
MOST_LEVELS = 4  # below the directory: a demo's runs lie three below its own


@dataclass(frozen=True)
class RunLine:
    """A run or a sweep in the list. `value` is its best bundle's, in `metric`; None where nothing was validated yet.

    `name` is its directory's path, relative to the one that was searched.
    `kind` is "training" or "sweep". `resumable`: it has not come to its end, nobody trains it, and there is something
    to go on from. `reason` says why its training ended or failed, as its driver knew it.
    """

    name: str
    status: str
    step: int | None
    metric: str | None
    value: float | None
    updated: float | None
    bundle: str | None
    kind: str = "training"
    resumable: bool = False
    reason: str | None = None


def list_runs(output: str) -> list[RunLine]:
    """The runs and sweeps below `output`, by name. Nothing is looked for in a run, nor in names with a . or _ before.

    Neither is `output` itself one: beside the settings that somebody trains with, `run.yaml`, lie his runs.
    """
    return list(_runs_below(output, "", MOST_LEVELS))


def _runs_below(directory: str, prefix: str, levels: int) -> Iterator[RunLine]:
    for name in list_directories(directory):
        if name.startswith((".", "_")):
            continue
        path = join(directory, quote(name) if is_remote(directory) else name)
        line = _line(path, prefix + name)
        if line is not None:
            yield line
        elif levels > 1:
            yield from _runs_below(path, f"{prefix}{name}/", levels - 1)


def _line(directory: str, name: str) -> RunLine | None:
    sweep = exists(join(directory, RAY_TUNE))
    if not sweep and not exists(join(directory, RUN_YAML)):
        return None
    try:
        return _run_line(name, directory, sweep=sweep)
    except (ValueError, TypeError, KeyError) as error:  # a file cut short, or of another version: the others are listed
        return RunLine(name, f"unreadable: {error}", None, None, None, None, None)


def _run_line(name: str, directory: str, *, sweep: bool) -> RunLine:
    best = pointed(directory, "best")
    told = _status(directory)
    status = "not begun" if told is None else shown_status(told)
    metric, value = (None, None) if best is None else _value(directory, best, told.metric if told else None)
    has_more = _sweep_is_open if sweep else has_begun
    return RunLine(
        name=name,
        status=status,
        step=None if told is None else told.step,
        metric=metric,
        value=value,
        updated=None if told is None else told.updated,
        bundle=None if best is None else join(directory, best),
        kind="sweep" if sweep else "training",
        resumable=status in ENDED_EARLY and has_more(directory),
        reason=None if told is None else told.reason,
    )


def _sweep_is_open(directory: str) -> bool:
    """Whether trials of a sweep were left."""
    if not exists(join(directory, TRIALS)):
        return exists(join(directory, METRICS))
    lines = read_bytes(join(directory, TRIALS)).decode().splitlines()
    return any(json.loads(line)["status"] in ("unfinished", "not started") for line in lines)


def _value(directory: str, bundle: str, metric: str | None) -> tuple[str | None, float | None]:
    """(metric, value) of the validation that a bundle is of."""
    of_bundle = (line for line in _metrics(directory) if bundle_name(round(line["step"]), line.get("trial")) == bundle)
    told = next(of_bundle, {})
    for name in (metric,) if metric else (VALIDATION_LOSS, TRAIN_LOSS):
        value = told.get(name)
        if value is not None and math.isfinite(value):
            return name, value
    return None, None


def _metrics(directory: str) -> Iterator[dict[str, Any]]:
    where = join(directory, METRICS)
    if exists(where):
        yield from (json.loads(line) for line in read_bytes(where).decode().splitlines())
