"""Metrics as named sums that merge by addition, so that any split of the rows gives the same result.

A state is a dict of float64 numbers; workers add theirs, `results` turns the total into metrics. Knows no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pyarrow as pa
import torch

from model.batches.collate import SequenceBatch, length_batches
from model.batches.encode import encode_rows
from model.features.fitted_columns import FittedColumns
from model.features.labels import UNSEEN, FittedLabel, ProblemType
from model.network import heads
from model.network.network import RnnNetwork
from model.scoring.metric_names import UNSEEN_LABELS
from model.state import StateSpec

MetricState = dict[str, float]


def batch_state(label: FittedLabel, logits: torch.Tensor, batch: SequenceBatch) -> MetricState:
    """The sums of one batch: weighted loss and, by problem, correct predictions or errors and targets.

    Labels of a class that the model does not have have no loss. They are counted, and their weight is summed by itself.
    """
    assert batch.labels is not None, "metrics need labels"
    assert batch.weights is not None, "labels come with weights"
    weights = batch.weights.double()
    state = {"rows": float(len(batch)), "weight": _total(weights)}
    if label.problem_type is ProblemType.CLASSIFICATION:
        unseen = batch.labels == UNSEEN
        losses = heads.loss(label, logits, batch.labels.clamp(min=0)).double()
        return state | {
            "loss": _total(losses * weights.masked_fill(unseen, 0)),
            "correct": _total((heads.class_ids(label, logits) == batch.labels).double() * weights),
            "unseen": _total(unseen & (weights > 0)),
            "unseen_weight": _total(weights * unseen),
        }
    losses = heads.loss(label, logits, batch.labels).double()
    targets = batch.labels.double()
    errors = (heads.scores(label, logits.double()) - targets).abs()
    return state | {
        "loss": _total(losses * weights) * label.scale**2,  # in the label's units
        "absolute": _total(errors * weights),
        "target": _total(targets * weights),
        "target_squares": _total(targets**2 * weights),
    }


def _total(values: torch.Tensor) -> float:
    return float(values.sum())


def merged(states: Iterable[Mapping[str, float]]) -> MetricState:
    """The sum of states, in the order given."""
    total: MetricState = {}
    for state in states:
        for name, value in state.items():
            total[name] = total.get(name, 0.0) + value
    return total


def results(label: FittedLabel, state: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the summed rows: weighted means over real steps or rows; NaN where nothing had weight.

    Classification: loss (nats), accuracy, perplexity = exp(loss), bits_per_step (or bits_per_row) = loss / ln 2; and
    unseen_labels, where there are some: steps or rows whose label is none of the classes, wrong and without a loss.
    Regression: loss (mean squared error), rmse, mae, r2.
    """
    weight = state.get("weight", 0.0)
    if not weight:
        return {"loss": math.nan, "rows": state.get("rows", 0.0)}
    known = weight - state.get("unseen_weight", 0.0)
    loss = state["loss"] / known if known else math.nan
    shared = {"loss": loss, "rows": state["rows"], "weight": weight}
    if label.problem_type is ProblemType.CLASSIFICATION:
        bits = "bits_per_step" if label.per_step else "bits_per_row"
        return (
            shared
            | {
                "accuracy": state["correct"] / weight,
                "perplexity": math.exp(min(loss, 700.0)),
                bits: loss / math.log(2),
            }
            | ({UNSEEN_LABELS: state["unseen"]} if state.get("unseen") else {})
        )
    square = state["target_squares"] / weight
    variance = square - (state["target"] / weight) ** 2
    return shared | {
        "rmse": math.sqrt(loss),
        "mae": state["absolute"] / weight,
        "r2": 1 - loss / variance if variance > 1e-12 * square else math.nan,  # else rounding of a constant target
    }


def table_metrics(
    network: RnnNetwork,
    columns: FittedColumns,
    label: FittedLabel,
    table: pa.Table,
    states: StateSpec | None = None,
    *,
    unseen_labels: bool = False,
) -> MetricState:
    """The sums of `model.scoring.metrics` over a table's rows, from the `states` that it holds, or from zero.

    DataError's row is the row in the table.
    """
    rows = encode_rows(table, columns, label, states, unseen_labels=unseen_labels)
    return merged(_sums(network, label, batch) for batch in length_batches(rows))


def _sums(network: RnnNetwork, label: FittedLabel, batch: SequenceBatch) -> MetricState:
    batch = batch.to(network.device, network.dtype)
    with torch.inference_mode():
        return batch_state(label, network(batch, keep_state=False).logits, batch)
