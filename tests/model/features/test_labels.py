"""Labels, their classes and the weights of rows: what they become, and what is refused."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.errors import DataError
from model.features.labels import UNSEEN, FittedLabel, fit_classes, label_stats, named_classes
from model.features.stats import ColumnStats

LENGTHS = np.array([2, 0, 1])


def label_of(problem: str, prediction: str, **more: Any) -> FittedLabel:
    return FittedLabel(name="y", problem_type=problem, prediction_type=prediction, **more)


def column(values: Any, kind: pa.DataType, prediction: str, name: str = "y") -> pa.Table:
    """Three values (single_value) or steps of `LENGTHS` (multiple_value), cut out of a longer table."""
    entries = pa.array([values[0], *values], kind)
    if prediction == "multiple_value":
        array = pa.LargeListArray.from_arrays(pa.array([0, 1, 3, 3, 4]), entries)
    else:
        array = entries
    return pa.table({name: array}).slice(1)


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize(
    ("classes", "values", "kind", "expected"),
    [
        (None, [0, 2, 1], pa.int64(), [0, 2, 1]),
        (None, [0, 2, 1], pa.uint8(), [0, 2, 1]),
        (None, [True, False, True], pa.bool_(), [1, 0, 1]),
        (("b", "a", "c"), ["a", "b", "c"], pa.string(), [1, 0, 2]),
        (("b", "a", "c"), ["a", "b", "c"], pa.dictionary(pa.int8(), pa.string()), [1, 0, 2]),
        ((10, 5, 7), [7, 10, 5], pa.int32(), [2, 0, 1]),
    ],
    ids=["int64", "uint8", "bool", "string", "dictionary", "listed integers"],
)
def test_class_values_become_ids(prediction: str, classes: Any, values: Any, kind: Any, expected: list[int]) -> None:
    label = label_of("classification", prediction, num_classes=3, classes=classes)
    ids = label.encode(column(values, kind, prediction), LENGTHS)
    assert (ids.dtype, ids.tolist()) == (np.int64, expected)


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, -2, 3], pa.int8()),
        ([0.5, 1e-3, -4.25], pa.float64()),
        ([Decimal("1.5"), Decimal("2"), Decimal("0")], pa.decimal128(4, 1)),
    ],
    ids=["int8", "double", "decimal"],
)
def test_targets_become_float32(prediction: str, values: Any, kind: Any) -> None:
    targets = label_of("linear_regression", prediction).encode(column(values, kind, prediction), LENGTHS)
    assert (targets.dtype, targets.tolist()) == (np.float32, np.array(values, np.float32).tolist())


@pytest.mark.parametrize(
    ("label", "array", "message"),
    [
        (
            label_of("classification", "single_value", num_classes=3),
            pa.array([[0], [1], [2]]),
            "column 'y': single_value needs one label a row, but this column holds lists; declare prediction_type: "
            "multiple_value for one a step",
        ),
        (
            label_of("classification", "multiple_value", num_classes=3),
            pa.array([0, 1, 2]),
            "column 'y': multiple_value needs a list of labels, one a step, but this column holds single values; "
            "declare prediction_type: single_value for one a row",
        ),
        (
            label_of("classification", "multiple_value", num_classes=3),
            pa.array([[0, 1], [], [2, 2]]),
            "row 2, column 'y': the lists of a row must be equally long, but this one has 2 steps where each sequence "
            "column has 1",
        ),
        (
            label_of("classification", "multiple_value", num_classes=3),
            pa.array([[[0], [1, 2]], [], [[]]]),  # as many ids as steps, but not one a step
            "column 'y': must hold one label a step, but its entries are lists",
        ),
        (
            label_of("classification", "multiple_value", num_classes=12),
            pa.array([[0, 11], [], [12]]),
            "row 2, column 'y': must be one of the 12 classes (0, 1, 2, 3, 4, …), but is 12",
        ),
        (
            label_of("classification", "single_value", num_classes=5),
            pa.array([0, -1, 1]),
            "row 1, column 'y': must be one of the 5 classes (0, 1, 2, 3, 4), but is -1",
        ),
        (
            label_of("classification", "single_value", num_classes=2, classes=("no", "yes")),
            pa.array(["no", "yes", "perhaps"]),
            "row 2, column 'y': must be one of the 2 classes ('no', 'yes'), but is 'perhaps'",
        ),
        (
            label_of("classification", "single_value", num_classes=2, classes=("no", "yes")),
            pa.array([0, 1, 1]),
            "column 'y': must hold values of type string as its vocabulary does, but holds int64",
        ),
        (
            label_of("classification", "single_value", num_classes=2),
            pa.array([0.0, 1.5, 1.0]),
            "row 1, column 'y': a category, class or key must be a whole number or a string, but one is 1.5",
        ),
        (
            label_of("linear_regression", "multiple_value"),
            pa.array([[0.5, None], [], [1]]),
            "row 0, column 'y': a label must not be null, but one is",
        ),
        (
            label_of("linear_regression", "multiple_value"),
            pa.array([[0.5, 1], [], [float("nan")]]),
            "row 2, column 'y': must be a finite number within float32's range, but is nan",
        ),
        (
            label_of("linear_regression", "single_value"),
            pa.array([0.5, 1e39, 1]),
            "row 1, column 'y': must be a finite number within float32's range, but is 1e+39",
        ),
        (
            label_of("linear_regression", "single_value"),
            pa.array(["1", "2", "3"]),
            "column 'y': must hold numbers, but its type is string",
        ),
    ],
)
def test_labels_that_do_not_fit_are_told(label: FittedLabel, array: pa.Array, message: str) -> None:
    with pytest.raises(DataError) as raised:
        label.encode(pa.table({"y": array}), LENGTHS)
    assert str(raised.value) == message


# Weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int8()])
def test_a_weight_a_row_counts_for_each_of_its_steps(kind: pa.DataType) -> None:
    table = column([0, 3, 4], kind, "single_value", "w")
    single = label_of("linear_regression", "single_value", weight="w").encode_weights(table, LENGTHS)
    steps = label_of("linear_regression", "multiple_value", weight="w").encode_weights(table, LENGTHS)
    assert single is not None
    assert steps is not None
    assert (single.dtype, single.tolist()) == (np.float32, [0, 3, 4])
    assert (steps.dtype, steps.tolist()) == (np.float32, [0, 0, 4])


def test_a_weight_a_step_stays_with_its_step() -> None:
    table = column([2, 3, 4], pa.float64(), "multiple_value", "w")
    weights = label_of("linear_regression", "multiple_value", weight="w").encode_weights(table, LENGTHS)
    assert weights is not None
    assert weights.tolist() == [2, 3, 4]


def test_without_a_weight_column_there_are_no_weights() -> None:
    assert label_of("linear_regression", "single_value").encode_weights(pa.table({}), LENGTHS) is None


@pytest.mark.parametrize(
    ("prediction", "array", "message"),
    [
        (
            "single_value",
            pa.array([[1.0], [], [1.0]]),
            "column 'w': single_value needs one weight a row, but this column holds lists",
        ),
        (
            "multiple_value",
            pa.array([[1.0], [], [1.0]]),
            "row 0, column 'w': the lists of a row must be equally long, but this one has 1 steps where each sequence "
            "column has 2",
        ),
        (
            "multiple_value",
            pa.array([[1.0, 1.0], [], [-1.0]]),
            "row 2, column 'w': a weight must be a number of at least 0, but is -1.0",
        ),
        (
            "single_value",
            pa.array([1.0, float("inf"), 1.0]),
            "row 1, column 'w': a weight must be a number of at least 0, but is inf",
        ),
        (
            "single_value",
            pa.array([1.0, 1.0, 1e39]),
            "row 2, column 'w': a weight must be a number of at least 0, but is 1e+39",
        ),
    ],
)
def test_weights_that_are_none_are_told(prediction: str, array: pa.Array, message: str) -> None:
    with pytest.raises(DataError) as raised:
        label_of("linear_regression", prediction, weight="w").encode_weights(pa.table({"w": array}), LENGTHS)
    assert str(raised.value) == message


# Classes from the training labels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({0: 5, 2: 1, 1: 9}, (3, None)),
        ({1: 5, 2: 1}, (2, (1, 2))),
        ({"b": 9, "a": 1}, (2, ("a", "b"))),
        ({0: 3, -1: 2}, (2, (-1, 0))),
    ],
)
def test_classes_are_the_labels_values_in_order(counts: dict[Any, int], expected: Any) -> None:
    assert fit_classes("y", ColumnStats(keys=Counter(counts))) == expected


def test_a_rare_class_is_a_class() -> None:
    stats = label_stats("y", pa.array(["a"] * 1000 + ["b", None]))
    assert fit_classes("y", stats) == (2, ("a", "b"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            pa.array(["a", "a"]),
            "column 'y': classification needs at least two classes, but the training labels hold 1",
        ),
        (
            pa.array([], pa.string()),
            "column 'y': classification needs at least two classes, but the training labels hold 0",
        ),
        (pa.array([[1], [2]]), "column 'y': must hold one label a step, but its entries are lists"),
        (
            pa.array([0.5, 1.5]),
            "row 0, column 'y': a category, class or key must be a whole number or a string, but one is 0.5",
        ),
    ],
)
def test_labels_that_are_no_classes_are_told(entries: pa.Array, message: str) -> None:
    with pytest.raises(DataError) as raised:
        fit_classes("y", label_stats("y", entries))
    assert str(raised.value) == message


def test_files_with_strings_and_files_with_integers_share_no_classes() -> None:
    stats = label_stats("y", pa.array(["a"])).merge(label_stats("y", pa.array([1])))
    with pytest.raises(DataError) as raised:
        fit_classes("y", stats)
    assert str(raised.value) == "column 'y': must hold strings or integers, but some files hold one and some the other"


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize(
    ("classes", "values", "kind", "expected"),
    [
        (None, [0, 3, -2], pa.int64(), [0, UNSEEN, UNSEEN]),
        (("b", "a", "c"), ["a", "new", "c"], pa.string(), [1, UNSEEN, 2]),
        ((10, 5, 7), [7, 0, 5], pa.int32(), [2, UNSEEN, 1]),
    ],
    ids=["int64", "string", "listed integers"],
)
def test_values_of_no_class_may_be_allowed(
    prediction: str, classes: Any, values: Any, kind: Any, expected: list[int]
) -> None:
    label = label_of("classification", prediction, num_classes=3, classes=classes, class_weights=(2, 3, 4))
    table = column(values, kind, prediction)
    ids = label.encode(table, LENGTHS, unseen=True)
    assert (ids.dtype, ids.tolist()) == (np.int64, expected)
    weights = label.encode_weights(table, LENGTHS, ids)
    assert weights is not None
    assert weights.tolist() == [1 if id_ == UNSEEN else id_ + 2 for id_ in expected]
    with pytest.raises(DataError, match="must be one of the 3 classes"):
        label.encode(table, LENGTHS)


def test_classes_that_only_held_out_rows_have_are_classes() -> None:
    counts = Counter({"b": 3, "a": 2, "late": 0})
    assert fit_classes("y", ColumnStats(keys=counts)) == (3, ("a", "b", "late"))
    assert named_classes("y", 3, ColumnStats(keys=counts)) == ("a", "b", "late")
    with pytest.raises(DataError) as raised:
        fit_classes("y", ColumnStats(keys=Counter({"a": 2, "late": 0})))
    assert str(raised.value) == (
        "column 'y': classification needs at least two classes, but the training labels hold 1"
    )
