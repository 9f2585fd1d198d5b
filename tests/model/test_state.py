"""The RNN state as named arrays: through Arrow and back, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.errors import StateError
from model.state import StateSpec, from_mapping

SPEC = StateSpec.of([(2,), (2, 3), ()])
NAMES = ("rnn_cell_state_0", "rnn_cell_state_1", "rnn_cell_state_2")


def states(rows: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    return tuple(random.normal(size=(rows, width)).astype(np.float32) for width in (2, 6, 1))


def table_of(state: tuple[np.ndarray, ...]) -> pa.Table:
    return pa.table(SPEC.to_arrow(state), names=SPEC.names)


def test_components_are_named_in_order_with_their_widths() -> None:
    assert SPEC.names == NAMES
    assert [component.numel for component in SPEC.components] == [2, 6, 1]
    assert [str(field.type) for field in SPEC.arrow_fields()] == [
        "fixed_size_list<item: float>[2]",
        "fixed_size_list<item: float>[6]",
        "fixed_size_list<item: float>[1]",
    ]
    assert StateSpec.model_validate_json(SPEC.model_dump_json()) == SPEC


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_state_survives_arrow(rows: int) -> None:
    found = SPEC.from_arrow(table_of(states(rows)))
    assert found is not None
    for part, expected in zip(found, states(rows), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert pa.schema(SPEC.arrow_fields()) == table_of(states(rows)).schema


def test_a_slice_of_chunks_of_any_list_and_float_is_read() -> None:
    table = table_of(states(4))
    other = table.cast(pa.schema({name: pa.large_list(pa.float64()) for name in NAMES})).cast(
        pa.schema({name: pa.list_(pa.float64()) for name in NAMES})
    )
    for arrow in (table, other):
        found = SPEC.from_arrow(pa.concat_tables([arrow.slice(2), arrow]).slice(1, 4))
        assert found is not None
        for part, whole in zip(found, states(4), strict=True):
            np.testing.assert_array_equal(part, whole[[3, 0, 1, 2]])


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.float32()), None])
def test_null_is_the_zero_state(kind: Any) -> None:
    fields = [pa.field(name, kind) for name in NAMES] if kind else SPEC.arrow_fields()
    found = SPEC.from_arrow(pa.table([pa.nulls(2, field.type) for field in fields], names=NAMES))
    assert found is not None
    for part, zeros in zip(found, SPEC.zeros(2), strict=True):
        np.testing.assert_array_equal(part, zeros)


def test_a_null_between_states_leaves_them_in_place() -> None:
    filled = table_of(states(3)).to_pylist()
    rows = [filled[0], dict.fromkeys(NAMES), filled[2]]
    found = SPEC.from_arrow(pa.Table.from_pylist(rows, pa.schema(SPEC.arrow_fields())))
    assert found is not None
    for part, whole in zip(found, states(3), strict=True):
        np.testing.assert_array_equal(part, np.stack([whole[0], whole[1] * 0, whole[2]]))


def test_a_table_without_state_columns_has_no_state() -> None:
    assert SPEC.from_arrow(pa.table({"x": [1]})) is None


def replaced(name: str, array: Any) -> pa.Table:
    table = table_of(states(2))
    return table.set_column(table.column_names.index(name), name, array)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            table_of(states(2)).select(["rnn_cell_state_1"]),
            "a state must have all of rnn_cell_state_0, rnn_cell_state_1, rnn_cell_state_2 or none, but "
            "rnn_cell_state_0, rnn_cell_state_2 is missing",
        ),
        (
            replaced(NAMES[2], pa.array([[1.0], None])),
            "row 1: a state must have all of rnn_cell_state_0, rnn_cell_state_1, rnn_cell_state_2 or none, but "
            "rnn_cell_state_2 is missing",
        ),
        (
            replaced(NAMES[1], pa.array([[1.0] * 6, [1.0] * 7])),
            "row 1, column 'rnn_cell_state_1': must hold 6 numbers, but holds 7",
        ),
        (
            replaced(NAMES[0], pa.array([[], [1.0, 2.0]])),
            "row 0, column 'rnn_cell_state_0': must hold 2 numbers, but holds 0",
        ),
        (
            replaced(NAMES[0], pa.array([1.0, 2.0])),
            "column 'rnn_cell_state_0': must be a list of 2 numbers, but is double",
        ),
        (
            replaced(NAMES[0], pa.array([["a", "b"]] * 2)),
            "column 'rnn_cell_state_0': must hold numbers, but its type is string",
        ),
        *[
            (
                replaced(NAMES[0], pa.array([[1.0, 2.0], [bad, 2.0]])),
                "row 1, column 'rnn_cell_state_0': must be finite numbers, but a value is not",
            )
            for bad in (float("nan"), float("-inf"), 1e39, None)
        ],
    ],
)
def test_a_state_that_does_not_fit_is_told(table: pa.Table, message: str) -> None:
    with pytest.raises(StateError) as raised:
        SPEC.from_arrow(table)
    assert str(raised.value) == message


# Named arrays ---------------------------------------------------------------------------------------------------


def test_named_arrays_may_have_the_components_shape_or_be_flat() -> None:
    first, second, third = states(2)
    for given in (second, second.reshape(2, 2, 3), second.tolist(), second.astype(np.float64)):
        found = from_mapping(SPEC, {NAMES[0]: first, NAMES[1]: given, NAMES[2]: third, "x": 1}, rows=2)
        assert found is not None
        assert [part.dtype.name for part in found] == ["float32"] * 3
        np.testing.assert_array_equal(found[1], second)
    assert from_mapping(SPEC, {"x": 1}, rows=2) is None


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {NAMES[0]: np.zeros((2, 2))},
            "a state must have all of rnn_cell_state_0, rnn_cell_state_1, rnn_cell_state_2 or none, but "
            "rnn_cell_state_1, rnn_cell_state_2 is missing",
        ),
        (
            dict(zip(NAMES, [np.zeros((1, 2)), np.zeros((2, 6)), np.zeros((2, 1))], strict=True)),
            "column 'rnn_cell_state_0': must have shape (2, 2), but has (1, 2)",
        ),
    ],
)
def test_named_arrays_that_do_not_fit_are_told(state: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError) as raised:
        from_mapping(SPEC, state, rows=2)
    assert str(raised.value) == message
