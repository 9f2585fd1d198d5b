"""Labels that are not known yet weigh nothing: the metrics are those of the known ones."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from model.scoring.metrics import results, table_metrics
from model.scoring.unknown_labels import without_unknown

PROBLEMS = [
    (problem, prediction)
    for problem in ("classification", "linear_regression")
    for prediction in ("single_value", "multiple_value")
]


def with_nulls(values: list[Any], *, but: int = 2) -> list[Any]:
    """Null for each third label, of a row or of a step."""
    if isinstance(values[0], list):
        flat = iter(range(10**9))
        return [[None if next(flat) % 3 == but else value for value in row] for row in values]
    return [None if row % 3 == but else value for row, value in enumerate(values)]


@pytest.mark.parametrize("weight", [None, "w"])
@pytest.mark.parametrize(("problem", "prediction"), PROBLEMS)
def test_an_evaluation_is_that_of_the_known_labels(
    make_table: Any, make_bundle: Any, problem: str, prediction: str, weight: str | None
) -> None:
    table = make_table(problem, prediction, lengths=[3, 0, 5, 2, 4, 1, 7])
    bundle = make_bundle(problem, prediction, weight=weight)
    network = bundle.network()
    of_classes = {} if problem == "linear_regression" else {"class_weights": (2.0, 1.0, 0.5)}
    fitted = bundle.label.model_copy(update=of_classes)
    labels = with_nulls(table["y"].to_pylist())
    place = table.column_names.index("y")
    unknown = table.set_column(place, "y", pa.array(labels, table.schema.field("y").type))

    found, label, count = without_unknown(unknown, fitted)
    metrics = results(bundle.label, table_metrics(network, bundle.columns, label, found))

    flat = [value for row in labels for value in (row if isinstance(row, list) else [row])]
    assert count == sum(value is None for value in flat) > 0
    by_row = [1.0] * len(labels) if weight is None else table["w"].to_pylist()
    if prediction == "multiple_value":
        known = [[w * (value is not None) for value in row] for w, row in zip(by_row, labels, strict=True)]
    else:
        known = [w * (value is not None) for w, value in zip(by_row, labels, strict=True)]
    weighted = table.append_column("known", pa.array(known))
    by_hand = fitted.model_copy(update={"weight": "known"})
    wanted = results(bundle.label, table_metrics(network, bundle.columns, by_hand, weighted))
    assert metrics == pytest.approx(wanted, rel=1e-6)
    assert not math.isnan(metrics["loss"])


def test_labels_of_which_none_is_known_give_no_metrics(make_table: Any, make_bundle: Any) -> None:
    table = make_table("classification", "single_value", rows=4)
    bundle = make_bundle("classification", "single_value")
    nothing = table.set_column(table.column_names.index("y"), "y", pa.nulls(4))
    found, label, count = without_unknown(nothing, bundle.label)
    metrics = results(bundle.label, table_metrics(bundle.network(), bundle.columns, label, found))
    assert (count, metrics["rows"], math.isnan(metrics["loss"])) == (4, 4.0, True)


def test_known_labels_stay_as_they_are(make_table: Any, make_bundle: Any) -> None:
    table, bundle = make_table(), make_bundle()
    found, label, count = without_unknown(table, bundle.label)
    assert (found is table, label is bundle.label, count) == (True, True, 0)
