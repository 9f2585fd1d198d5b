"""Metrics of an evaluation: the sums that clusters add up, and what needs the items themselves.

An item is a real step (multiple_value) or a row (single_value) of positive weight. N items, C classes. Knows no user
input, no files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from model.batches.collate import SequenceBatch
from model.errors import ConfigError
from model.features.labels import FittedLabel, ProblemType
from model.network import heads
from model.network.network import RnnNetwork
from model.scoring import metrics as sums

Items = dict[str, np.ndarray]

_log = logging.getLogger("dynamic_rnn")


def evaluate(
    network: RnnNetwork,
    label: FittedLabel,
    batches: Iterable[SequenceBatch],
    metrics: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Loss, accuracy and the like over all batches; macro F1 and, for two classes, AUC; and the user's metrics.

    A user's metric is a function of (labels, predictions, weights), or an object with `update(predictions, labels)` and
    `compute()` as torchmetrics has them, which gets probabilities (of the second of two classes) or scores.
    """
    check_metrics(metrics)
    states, parts = [], []
    for batch in batches:
        state, items = _evaluated(network, label, batch.to(network.device, network.dtype), every=bool(metrics))
        states.append(state)
        parts.append(items)
    results = sums.results(label, sums.merged(states))
    items = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    if label.problem_type is ProblemType.CLASSIFICATION and len(items.get("labels", ())):
        results["macro_f1"] = macro_f1(items["labels"], items["classes"], items["weights"])
        if label.num_classes == 2:
            results["auc"] = area_under_curve(items["labels"], items["positive"], items["weights"])
    return results | {name: _user_metric(metric, items) for name, metric in (metrics or {}).items()}


def fed(
    x: Any, input_fn: Callable[[], Any] | None, feed_fn: Callable[[], Any] | None, steps: int | None
) -> Callable[[], Any] | None:
    """The function that gives the batches: input_fn, or feed_fn, which is asked for one batch a step."""
    if steps is not None and steps < 1:
        raise ConfigError(f"steps must be at least 1, or None for all rows, but is {steps}")
    if feed_fn is None:
        return input_fn
    if x is not None or input_fn is not None:
        raise ConfigError("feed_fn gives the batches itself; leave x and input_fn out")
    if steps is None:
        raise ConfigError("steps must say how many batches feed_fn is asked for")
    return feed_fn


def progress_log(name: str | None, steps: int | None) -> Callable[[int], object]:
    """A hook that logs the number of each batch; of about ten of them where their number is known."""
    what = "evaluation" if name is None else f"evaluation {name}"
    every = 1 if steps is None else max(1, round(steps / 10))

    def log(number: int) -> None:
        if number % every == 0 or number == steps:
            _log.info("%s: batch %d%s", what, number, "" if steps is None else f" of {steps}")

    return log


def hooked(batches: Iterator[SequenceBatch], hooks: tuple[Callable[[int], object], ...]) -> Iterator[SequenceBatch]:
    """The batches; before each, the hooks are told its number, from 1."""
    for number, batch in enumerate(batches, 1):
        for hook in hooks:
            hook(number)
        yield batch


def check_metrics(metrics: Mapping[str, Any] | None) -> None:
    """ConfigError for metrics that are no mapping of names to functions or metric objects."""
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"metrics must be a dict of name: metric, but is {type(metrics).__name__}")
    for name, metric in metrics.items():
        if not (callable(metric) or _is_object(metric)):
            raise ConfigError(f"metrics[{name!r}] must be a function or have update and compute, but has not")


@torch.inference_mode()
def _evaluated(
    network: RnnNetwork, label: FittedLabel, batch: SequenceBatch, *, every: bool
) -> tuple[sums.MetricState, Items]:
    """One batch's sums and items; with `every` all that users' metrics may want."""
    logits = network(batch, keep_state=False).logits
    assert batch.weights is not None, "labels come with weights"
    assert batch.labels is not None, "evaluation needs labels"
    kept = batch.weights > 0
    values = {"labels": batch.labels, "weights": batch.weights}
    if label.problem_type is ProblemType.CLASSIFICATION:
        values["classes"] = heads.class_ids(label, logits)
        if every or label.num_classes == 2:
            values["probabilities"] = heads.class_probabilities(label, logits)
    elif every:
        values["scores"] = logits.squeeze(-1)
    items = {name: value[kept].cpu().numpy() for name, value in values.items()}
    if label.num_classes == 2:
        items["positive"] = logits.squeeze(-1)[kept].cpu().numpy()  # ranks finer than probabilities near 0 and 1
    return sums.batch_state(label, logits, batch), items


def _is_object(metric: Any) -> bool:
    return hasattr(metric, "update") and hasattr(metric, "compute")


def _user_metric(metric: Any, items: Items) -> float:
    outputs = {name: items[name] for name in ("classes", "probabilities", "scores") if name in items}
    if not _is_object(metric):
        return float(metric(items.get("labels"), outputs, items.get("weights")))
    chances = outputs.get("probabilities")
    predicted = outputs.get("scores") if chances is None else chances[:, 1] if chances.shape[1] == 2 else chances
    if hasattr(metric, "reset"):
        metric.reset()
    if predicted is not None:
        metric.update(torch.from_numpy(np.array(predicted)), torch.from_numpy(np.array(items["labels"])))
    return float(metric.compute())


def macro_f1(labels: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> float:
    """Mean F1 over the classes that stand among labels or predictions: 2·TP / (2·TP + FP + FN), weighted."""
    size = int(max(labels.max(), classes.max())) + 1
    hits = np.bincount(labels[labels == classes], weights[labels == classes], size)
    total = np.bincount(labels, weights, size) + np.bincount(classes, weights, size)
    return float(np.mean(2 * hits[total > 0] / total[total > 0]))


def area_under_curve(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Probability that an item of class 1 scores above one of class 0, ties half; NaN where a class is missing."""
    _, place = np.unique(scores, return_inverse=True)
    positive = np.bincount(place, weights * (labels == 1))
    negative = np.bincount(place, weights * (labels == 0))
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else float("nan")
