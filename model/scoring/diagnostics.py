"""Where a model errs: by class, by confidence, by length of the sequence; residuals of a regression. Sums that merge.

An item is a real step (multiple_value) or a row (single_value) of positive weight, and counts with its weight; one
whose label is none of the model's classes is left out.
N items, C classes. Knows no files, no reports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from model.batches.collate import SequenceBatch
from model.features.labels import UNSEEN, FittedLabel, ProblemType
from model.network import heads
from model.network.network import RnnNetwork

CONFIDENCE_BINS = 20
RESIDUAL_BINS = 41
RESIDUAL_RANGE = 4.0  # residuals are counted in units of their root mean square, beyond it at the ends


@dataclass
class Diagnostics:
    """`length_…` have an entry for each power of two: items of rows with 1, 2–3, 4–7 … steps.

    Classification: `confusion` [C, C] has a row a label and a column a prediction; `confidence_…` [20] tell, by the
    probability of the predicted class, the items, their summed confidence and how many are right. Regression:
    `residuals` holds each item's prediction − label, in the label's units, `labels` its label.
    """

    length_items: np.ndarray
    length_errors: np.ndarray  # wrong predictions, or squared errors
    confusion: np.ndarray
    confidence_items: np.ndarray
    confidence_sums: np.ndarray
    confidence_right: np.ndarray
    residuals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def items(self) -> float:
        """Weight of all items."""
        return float(self.length_items.sum())


def diagnose(network: RnnNetwork, label: FittedLabel, batches: Iterable[SequenceBatch]) -> Diagnostics:
    """Diagnostics over all batches, computed without gradients or dropout."""
    classes = label.num_classes or 0
    bins = np.zeros(CONFIDENCE_BINS)
    total = Diagnostics(np.zeros(32), np.zeros(32), np.zeros((classes, classes)), bins, bins.copy(), bins.copy())
    for batch in batches:
        _add(total, network, label, batch.to(network.device, network.dtype))
    return total


@torch.inference_mode()
def _add(total: Diagnostics, network: RnnNetwork, label: FittedLabel, batch: SequenceBatch) -> None:
    logits = network(batch, keep_state=False).logits
    assert batch.labels is not None, "diagnostics need labels"
    assert batch.weights is not None, "labels come with weights"
    kept = batch.weights > 0
    if label.problem_type is ProblemType.CLASSIFICATION:
        kept = kept & (batch.labels != UNSEEN)
    weights, labels = (each[kept].double().cpu().numpy() for each in (batch.weights, batch.labels))
    lengths = batch.lengths_B.to(kept.device)
    power = lengths[:, None].expand(kept.shape)[kept] if label.per_step else lengths[kept]
    places = np.log2(power.cpu().numpy()).astype(np.int64)
    if label.problem_type is ProblemType.CLASSIFICATION:
        errors = _add_classes(total, heads.class_probabilities(label, logits)[kept], labels.astype(np.int64), weights)
    else:
        residuals = heads.scores(label, logits.double())[kept].cpu().numpy() - labels
        total.residuals = np.concatenate([total.residuals, residuals])
        total.weights = np.concatenate([total.weights, weights])
        errors = residuals**2
    total.length_items += np.bincount(places, weights, 32)
    total.length_errors += np.bincount(places, weights * errors, 32)


def _add_classes(total: Diagnostics, chances_NC: torch.Tensor, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Counts the items; returns which are wrong, as 0 and 1."""
    confidence, predicted = (each.cpu().numpy() for each in chances_NC.max(-1))
    np.add.at(total.confusion, (labels, predicted), weights)
    right: np.ndarray = (labels == predicted).astype(np.float64)
    places = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    total.confidence_items += np.bincount(places, weights, CONFIDENCE_BINS)
    total.confidence_sums += np.bincount(places, weights * confidence, CONFIDENCE_BINS)
    total.confidence_right += np.bincount(places, weights * right, CONFIDENCE_BINS)
    return 1 - right


def calibration_error(found: Diagnostics) -> float:
    """Expected calibration error: |accuracy − confidence| averaged over the bins by weight (Guo et al., 2017)."""
    items = found.confidence_items.sum()
    return float(np.abs(found.confidence_right - found.confidence_sums).sum() / items) if items else float("nan")


def residual_histogram(found: Diagnostics) -> tuple[np.ndarray, np.ndarray, float]:
    """(edges, weights, root mean square) of the residuals; those beyond ±4 root mean squares count at the ends."""
    weight = found.weights.sum()
    scale = float(np.sqrt((found.residuals**2 * found.weights).sum() / weight)) if weight else 0.0
    edges = np.linspace(-RESIDUAL_RANGE, RESIDUAL_RANGE, RESIDUAL_BINS + 1) * (scale or 1.0)
    inside = np.clip(found.residuals, edges[0], edges[-1])
    return edges, np.histogram(inside, edges, weights=found.weights)[0], scale
