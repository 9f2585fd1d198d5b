"""What a run keeps of its reports: the best bundles and the latest, a line of metrics each, and why training ended.

Reports of steps that were lost with a worker or its driver come again and take the place of their first try, so each
step stands in `metrics.jsonl` once. Only rank 0 comes here. Knows no Ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model.bundle.bundle import save_bundle
from model.bundle.run_directory import BUNDLES, ENDED, METRICS, bundle_name, point_to, pointed
from model.scoring.metric_names import loss_score, score
from model.storage import exists, join, list_names, read_bytes, remove_tree, write_bytes
from pipelines.config import RunTrainConfig

if TYPE_CHECKING:
    from pipelines.train.job import Report

Metrics = dict[str, float]


def retain(directory: str, report: Report, settings: RunTrainConfig) -> None:
    """Writes the bundle and the metrics of a validation; removes bundles that are neither among the best nor latest."""
    lines = [*read_metrics(directory, report.step), report.metrics]
    latest = bundle_name(report.step)
    save_bundle(join(directory, latest), report.bundle)
    point_to(directory, "latest", latest)
    best = [bundle_name(step) for step in best_steps(lines, settings)]
    if pointed(directory, "best") != best[0]:
        point_to(directory, "best", best[0])
    write_metrics(directory, lines)
    if report.last:
        told = {"step": report.step, "reason": report.ended}
        write_bytes(join(directory, ENDED), f"{json.dumps(told)}\n".encode())
    for name in list_names(join(directory, BUNDLES)):
        if join(BUNDLES, name) not in (latest, *best):
            remove_tree(join(directory, BUNDLES, name))


def best_steps(lines: Sequence[Metrics], settings: RunTrainConfig) -> list[int]:
    """Steps of the `keep_best` best reports, the best first; of equals the earlier one is better.

    Where early stopping does not restore the best, the latest report stands for the run, before them.
    """
    early = settings.early_stopping

    def badness(line: Metrics) -> float:
        return loss_score(line) if early is None else score(line, early.metric, early.best_is)

    ranked = sorted(lines, key=lambda line: (badness(line), line["step"]))
    best = [round(line["step"]) for line in ranked[: settings.keep_best]]
    if early is None or early.restore_best:
        return best
    latest = round(lines[-1]["step"])
    return [latest, *(step for step in best if step != latest)]


def why_ended(directory: str) -> str:
    """Why the run's training ended, in a sentence; empty where an older version trained it."""
    path = join(directory, ENDED)
    return str(json.loads(read_bytes(path))["reason"]) if exists(path) else ""


def read_metrics(directory: str, before_step: float = math.inf) -> list[Metrics]:
    """The lines of metrics.jsonl of earlier steps; what comes later in the file is being computed again."""
    path = join(directory, METRICS)
    lines = read_bytes(path).decode().splitlines() if exists(path) else []
    parsed: list[dict[str, float | None]] = [json.loads(line) for line in lines]
    told = [{name: math.nan if value is None else value for name, value in line.items()} for line in parsed]
    return [line for line in told if line["step"] < before_step]


def write_metrics(directory: str, metrics: Sequence[Metrics]) -> None:
    """Replaces metrics.jsonl; NaN becomes null."""
    lines = [{name: value if math.isfinite(value) else None for name, value in line.items()} for line in metrics]
    write_bytes(join(directory, METRICS), "".join(json.dumps(line) + "\n" for line in lines).encode())
