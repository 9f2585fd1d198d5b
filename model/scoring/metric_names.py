"""The names of metrics, which end of each is good, and how good a report is. Knows no torch: configs ask here, too.

`model.scoring.metrics` computes what is named here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from model.features.labels import FittedLabel, ProblemType

TRAIN_LOSS = "train_loss"
VALIDATION_LOSS = "validation_loss"
UNSEEN_LABELS = "unseen_labels"  # told only where there are some
COUNTS = ("rows", "weight")  # what the others are means over: no end of these is good
MAXIMISED = ("accuracy", "r2")


def sum_names(label: FittedLabel) -> tuple[str, ...]:
    """The sums of `batch_state`, known to a worker that has seen no batch."""
    if label.problem_type is ProblemType.CLASSIFICATION:
        return (*COUNTS, "loss", "correct", "unseen", "unseen_weight")
    return (*COUNTS, "loss", "absolute", "target", "target_squares")


def metric_names(label: FittedLabel) -> tuple[str, ...]:
    """What `results` gives of rows with weight, in its order."""
    if label.problem_type is ProblemType.CLASSIFICATION:
        return ("loss", *COUNTS, "accuracy", "perplexity", "bits_per_step" if label.per_step else "bits_per_row")
    return ("loss", *COUNTS, "rmse", "mae", "r2")


def of_validation(name: str) -> str:
    """The name under which a metric of the validation rows is reported."""
    return f"validation_{name}"


def good_end(metric: str) -> Literal["min", "max"]:
    """Which end of a metric is good, whatever rows it is of."""
    return "max" if metric.endswith(MAXIMISED) else "min"


def loss_score(metrics: Mapping[str, Any]) -> float:
    """The score of a report where nobody has chosen a metric: its validation loss, without validation train_loss."""
    return score(metrics, VALIDATION_LOSS if VALIDATION_LOSS in metrics else TRAIN_LOSS, "min")


def score(metrics: Mapping[str, Any], metric: str, end: Literal["min", "max"]) -> float:
    """A report's metric as a number to minimise; infinite where it is none."""
    value = metrics.get(metric)
    if value is None or not math.isfinite(value):
        return math.inf
    return float(value) if end == "min" else -float(value)
