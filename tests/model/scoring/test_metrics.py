"""Metrics by hand: means over steps and rows, and labels of classes that the model does not have."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
import torch

from model.batches.collate import length_batches
from model.batches.encode import encode_rows
from model.scoring.diagnostics import diagnose
from model.scoring.metrics import batch_state, merged, results, table_metrics

LENGTHS = [3, 1, 0, 2]


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("weight", [None, "w"])
def test_labels_of_no_class_are_wrong_and_without_a_loss(
    make_table: Any, make_bundle: Any, prediction: str, num_classes: int, weight: str | None
) -> None:
    bundle = make_bundle("classification", prediction, num_classes=num_classes, weight=weight)
    table = make_table("classification", prediction, lengths=LENGTHS, num_classes=num_classes)
    per_step = prediction == "multiple_value"
    labels = [[0, 9, 1], [1], [], [9, 0]] if per_step else [9, 1, 0, 0]
    known = [[0, 0, 1], [1], [], [0, 0]] if per_step else [0, 1, 0, 0]
    place = table.column_names.index("y")

    def batch_of(values: Any, *, unseen_labels: bool) -> Any:
        rows = table.set_column(place, "y", pa.array(values))
        encoded = encode_rows(rows, bundle.columns, bundle.label, unseen_labels=unseen_labels)
        (batch,) = length_batches(encoded)
        return batch

    batch = batch_of(labels, unseen_labels=True)
    with torch.inference_mode():
        logits = bundle.network()(batch).logits
        found = results(bundle.label, batch_state(bundle.label, logits, batch))

    # The same by hand, item by item: those of no class have no loss, but a weight.
    whole = batch_of(known, unseen_labels=False)
    items = torch.ones_like(batch.weights, dtype=torch.bool) if not per_step else batch.weights > 0
    loss = right = loss_weight = weight_sum = 0.0
    unseen = 0
    if num_classes == 2:
        logits = torch.cat([torch.zeros_like(logits), logits], -1)
    for place_ in items.nonzero().tolist():
        at = tuple(place_)
        item_weight, label = float(batch.weights[at]), int(batch.labels[at])
        weight_sum += item_weight
        if label < 0:
            unseen += item_weight > 0
            continue
        assert label == whole.labels[at]
        loss -= item_weight * float(torch.log_softmax(logits[at].double(), -1)[label])
        loss_weight += item_weight
        right += item_weight * (int(logits[at].argmax()) == label)
    assert unseen == (2 if per_step else 1)
    assert found["unseen_labels"] == unseen
    assert found["accuracy"] == pytest.approx(right / weight_sum, rel=1e-6)
    assert found["loss"] == pytest.approx(loss / loss_weight, rel=1e-5)
    assert found["weight"] == pytest.approx(weight_sum, rel=1e-6)


def test_metrics_of_known_labels_have_no_count_of_others(make_table: Any, make_bundle: Any) -> None:
    bundle, table = make_bundle(), make_table(lengths=LENGTHS)
    sums = [
        table_metrics(bundle.network(), bundle.columns, bundle.label, table, unseen_labels=allowed)
        for allowed in (False, True)
    ]
    found, allowed = (results(bundle.label, state) for state in sums)
    assert found == allowed
    assert list(found) == ["loss", "rows", "weight", "accuracy", "perplexity", "bits_per_step"]


def test_labels_all_of_no_class_have_no_loss(make_table: Any, make_bundle: Any) -> None:
    bundle = make_bundle()
    table = make_table(lengths=[2])
    table = table.set_column(table.column_names.index("y"), "y", pa.array([[7, 8]]))
    state = table_metrics(bundle.network(), bundle.columns, bundle.label, table, unseen_labels=True)
    found = results(bundle.label, merged([state, {}]))
    assert math.isnan(found.pop("loss"))
    assert (found["accuracy"], found["unseen_labels"], found["weight"]) == (0, 2, 2)


def test_diagnostics_leave_out_labels_of_no_class(make_table: Any, make_bundle: Any) -> None:
    bundle, table = make_bundle(), make_table(lengths=[2, 1])
    table = table.set_column(table.column_names.index("y"), "y", pa.array([[0, 8], [1]]))
    rows = encode_rows(table, bundle.columns, bundle.label, unseen_labels=True)
    found = diagnose(bundle.network(), bundle.label, length_batches(rows))
    assert (found.items, found.confusion.sum(1).tolist()) == (2, [1, 1, 0])
