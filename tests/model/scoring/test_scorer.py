"""Scoring: a row's answer is its own, states pass through, and a bad row fails alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.bundle.bundle import Bundle, save_bundle
from model.network.cells import Cell
from model.registry import BUILT_IN_CELLS
from model.scoring.scorer import Scored, Scorer

LENGTHS = [3, 0, 7, 1, 5, 0, 2]
NAN = float("nan")


class CountingCell(Cell):
    """A user's cell whose state holds one number a row."""

    def __init__(self, input_size: int, num_units: int) -> None:
        super().__init__(input_size, num_units)
        self.place = torch.nn.Parameter(torch.ones(input_size, num_units))

    def zero_state(self, rows: int) -> Any:
        return self.place.new_zeros(rows)

    def step(self, x_BF: Any, state: Any) -> tuple[Any, Any]:
        return (x_BF @ self.place + state.unsqueeze(1)).tanh(), state + 1


@pytest.fixture(autouse=True, scope="module")
def _registered(register: Any) -> None:
    register("counting_for_tests", CountingCell)


CELLS = (*BUILT_IN_CELLS, "counting_for_tests")
PROBLEMS = ["classification", "linear_regression"]
PREDICTIONS = ["single_value", "multiple_value"]
every_model = pytest.mark.parametrize(
    ("cell", "problem", "prediction"),
    [(cell, problem, prediction) for cell in CELLS for problem in PROBLEMS for prediction in PREDICTIONS],
)


def scorer_of(bundle: Bundle) -> Scorer:
    return Scorer(bundle, probabilities=bundle.config.problem_type == "classification")


def with_state(table: pa.Table, scorer: Scorer, state: tuple[np.ndarray, ...]) -> pa.Table:
    for name, column in zip(scorer.state_spec.names, scorer.state_spec.to_arrow(state), strict=True):
        table = table.append_column(name, column)
    return table


def random_state(scorer: Scorer, rows: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(3)
    return tuple(random.normal(size=part.shape).astype(np.float32) / 2 for part in scorer.state_spec.zeros(rows))


def flat(table: pa.Table, row: int) -> tuple[list[Any], np.ndarray]:
    """A row's classes, and its other numbers in one vector."""
    values = table.slice(row, 1).to_pylist()[0]
    numbers = [np.ravel(values[name] or []) for name in values if name != "classes"]
    return values.get("classes", []), np.concatenate(numbers) if numbers else np.empty(0)


def assert_rows_equal(scored: Scored, row: int, other: Scored, other_row: int, tolerance: float = 1e-6) -> None:
    classes, numbers = flat(scored.predictions, row)
    other_classes, other_numbers = flat(other.predictions, other_row)
    assert classes == other_classes
    np.testing.assert_allclose(numbers, other_numbers, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(scored.state, other.state, strict=True):
        np.testing.assert_allclose(mine[row], theirs[other_row], rtol=tolerance, atol=tolerance)


def assert_identical(scored: Scored, other: Scored) -> None:
    assert scored.predictions.equals(other.predictions)
    for mine, theirs in zip(scored.state, other.state, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@every_model
def test_batch_mates_and_padding_never_change_a_row(
    make_bundle: Any, make_table: Any, cell: str, problem: str, prediction: str
) -> None:
    scorer = scorer_of(make_bundle(problem, prediction, cell))
    table = make_table(problem, prediction, lengths=LENGTHS)
    table = with_state(table, scorer, random_state(scorer, len(LENGTHS)))
    together = scorer.score(table)
    assert together.predictions.num_rows == len(LENGTHS)
    for row in range(len(LENGTHS)):
        assert_rows_equal(together, row, scorer.score(table.slice(row, 1)), 0)


@every_model
def test_one_event_at_a_time_is_the_whole_sequence(
    make_bundle: Any, make_table: Any, cell: str, problem: str, prediction: str
) -> None:
    scorer = scorer_of(make_bundle(problem, prediction, cell))
    table = make_table(problem, prediction, lengths=[6, 6])
    whole, state, events = scorer.score(table), None, []
    for t in range(6):
        columns = {
            name: pa.array(
                [steps[t : t + 1] for steps in table.column(name).to_pylist()], table.schema.field(name).type
            )
            for name in ("x", "vector", "kind", "tags")
        }
        event = pa.table({**columns, "age": table.column("age"), "country": table.column("country")})
        scored = scorer.score(event if state is None else with_state(event, scorer, state))
        assert scored.errors == {}
        state = scored.state
        events.append(scored)
    for row in range(2):
        for mine, theirs in zip(events[-1].state, whole.state, strict=True):
            np.testing.assert_allclose(mine[row], theirs[row], atol=1e-5)
        if prediction == "single_value":
            assert_rows_equal(events[-1], row, whole, row, 1e-5)
            continue
        classes, numbers = flat(whole.predictions, row)
        parts = [flat(event.predictions, row) for event in events]
        assert [value for part, _ in parts for value in part] == classes
        np.testing.assert_allclose(np.concatenate([part for _, part in parts]), numbers, atol=1e-5)


@every_model
def test_a_saved_model_predicts_bit_for_bit_alike(
    make_bundle: Any, make_table: Any, tmp_path: Path, cell: str, problem: str, prediction: str
) -> None:
    bundle, table = make_bundle(problem, prediction, cell), make_table(problem, prediction)
    save_bundle(tmp_path, bundle)
    assert_identical(Scorer.load(tmp_path).score(table), Scorer(bundle).score(table))


@every_model
def test_rows_without_steps_keep_their_state(
    make_bundle: Any, make_table: Any, cell: str, problem: str, prediction: str
) -> None:
    scorer = scorer_of(make_bundle(problem, prediction, cell))
    state = random_state(scorer, 3)
    for lengths in ([0, 2, 0], [0, 0, 0]):
        scored = scorer.score(with_state(make_table(problem, prediction, lengths=lengths), scorer, state))
        empty = None if prediction == "single_value" else []
        for column in scored.predictions.to_pydict().values():
            assert column[0] == column[2] == empty
        for after, before in zip(scored.state, state, strict=True):
            np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def spoiled(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    values = table.column(name).to_pylist()
    values[row] = value
    kind = table.schema.field(name).type
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_bad_row_fails_alone_and_its_mates_do_not_notice(make_bundle: Any, make_table: Any, prediction: str) -> None:
    scorer = scorer_of(make_bundle("classification", prediction))
    table = with_state(make_table(lengths=LENGTHS), scorer, random_state(scorer, len(LENGTHS)))
    for name, row, value in (("x", 0, [NAN] * 3), ("kind", 4, ["buy"]), ("rnn_cell_state_1", 5, [NAN] * 4)):
        table = spoiled(table, name, row, value)
    scored = scorer.score(table)
    assert {row: str(error) for row, error in scored.errors.items()} == {
        0: "row 0, column 'x': must be finite numbers, but an entry is NaN; `nan_is_missing: true` of this "
        "column, or under data, takes it for missing",
        4: "row 4, column 'kind': the lists of a row must be equally long, but this one has 1 steps where 'tags' has 5",
        5: "row 5, column 'rnn_cell_state_1': must be finite numbers, but a value is not",
    }
    good = [1, 2, 3, 6]
    alone = scorer.score(table.take(good))
    assert_identical(Scored(scored.predictions.take(good), tuple(part[good] for part in scored.state), {}), alone)
    for row in (0, 4, 5):
        assert set(scored.predictions.slice(row, 1).to_pylist()[0].values()) == {None}
        assert not any(part[row].any() for part in scored.state)


@pytest.mark.parametrize("bad", [[0], [6], [0, 1, 2, 3, 4, 5], [1, 3, 5]], ids=str)
def test_exactly_the_bad_rows_are_found(make_bundle: Any, make_table: Any, bad: list[int]) -> None:
    table = make_table(lengths=[2] * 7)
    for row in bad:
        table = spoiled(table, "vector", row, [[0, NAN, 0]] * 2)
    scored = Scorer(make_bundle()).score(table)
    assert sorted(scored.errors) == bad
    assert {error.row for error in scored.errors.values()} == set(bad)
    assert [values is None for values in scored.predictions.column("classes").to_pylist()] == [
        r in bad for r in range(7)
    ]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_column_that_is_missing_or_of_another_type_fails_every_row(
    make_bundle: Any, make_table: Any, rows: int
) -> None:
    table, scorer = make_table(lengths=[2] * rows), Scorer(make_bundle())
    wrong_type = table.set_column(0, "x", pa.array([["1", "2"]] * rows, pa.list_(pa.string())))
    for spoilt, message in (
        (
            table.drop_columns(["age"]),
            "column 'age': is not in the data; the columns are x, vector, kind, tags, country, y, w, key, row",
        ),
        (wrong_type, "column 'x': must hold numbers, but its type is string"),
        (
            table.append_column("rnn_cell_state_0", pa.nulls(rows)),
            "a state must have all of rnn_cell_state_0, rnn_cell_state_1, rnn_cell_state_2, rnn_cell_state_3 or none, "
            "but rnn_cell_state_1, rnn_cell_state_2, rnn_cell_state_3 is missing",
        ),
    ):
        scored = scorer.score(spoilt)
        assert [str(error) for error in scored.errors.values()] == [message] * rows
        assert scored.predictions.column("classes").to_pylist() == [None] * rows
        assert [part.shape for part in scored.state] == [(rows, 4), (rows, 4), (rows, 3), (rows, 3)]


@every_model
def test_no_rows_give_no_rows_of_the_same_types(
    make_bundle: Any, make_table: Any, cell: str, problem: str, prediction: str
) -> None:
    scorer, table = scorer_of(make_bundle(problem, prediction, cell)), make_table(problem, prediction)
    none, some = scorer.score(table.slice(0, 0)), scorer.score(table)
    assert none.predictions.schema == some.predictions.schema
    assert none.predictions.num_rows == 0
    assert [part.shape[1:] for part in none.state] == [part.shape[1:] for part in some.state]


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_chunks_and_slices_give_the_same_bits(make_bundle: Any, make_table: Any, cut: int) -> None:
    scorer, table = Scorer(make_bundle()), make_table()
    pieces = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    longer = pa.concat_tables([make_table(seed=9), table, make_table(seed=8)]).slice(12, 12)
    for other in (pieces, longer, pa.Table.from_pylist(table.to_pylist(), table.schema)):
        assert_identical(scorer.score(other), scorer.score(table))


def test_a_null_state_is_the_zero_state(make_bundle: Any, make_table: Any) -> None:
    scorer, table = Scorer(make_bundle()), make_table(lengths=[2, 3])
    state = random_state(scorer, 2)
    given = with_state(table, scorer, state)
    for name in scorer.state_spec.names:
        given = spoiled(given, name, 0, None)
    scored = scorer.score(given)
    assert_rows_equal(scored, 0, scorer.score(table), 0)
    assert_rows_equal(scored, 1, scorer.score(with_state(table, scorer, state)), 1)
    assert not np.allclose(scored.state[0][1], scorer.score(table).state[0][1])


def test_classes_are_given_as_the_values_they_were_learned_from(make_bundle: Any, make_table: Any) -> None:
    classes, table = ["cat", "dog", "emu"], make_table(lengths=[4, 2])
    named = Scorer(make_bundle(classes=classes)).score(table).predictions.column("classes").to_pylist()
    numbered = Scorer(make_bundle()).score(table).predictions.column("classes").to_pylist()
    assert named == [[classes[i] for i in row] for row in numbered]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_probabilities_belong_to_the_classes(make_bundle: Any, make_table: Any, num_classes: int) -> None:
    bundle = make_bundle("classification", "single_value", num_classes=num_classes, predict_probabilities=True)
    scored = Scorer(bundle).score(make_table(lengths=[4, 2])).predictions
    assert scored.column_names == ["classes", "probabilities"]
    for row in scored.to_pylist():
        assert len(row["probabilities"]) == num_classes
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-6)
        assert row["classes"] == int(np.argmax(row["probabilities"]))
    assert Scorer(bundle, probabilities=False).score(make_table()).predictions.column_names == ["classes"]


def test_long_tables_are_cut_into_bounded_batches(
    make_bundle: Any, make_table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, table = scorer_of(make_bundle()), make_table(rows=30)
    whole = scorer.score(table)
    monkeypatch.setattr("model.batches.collate.MAX_PADDED_STEPS", 10)
    cut = scorer.score(table)
    for row in range(30):
        assert_rows_equal(cut, row, whole, row)


def test_good_tables_are_encoded_once(make_bundle: Any, make_table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, calls, encode = Scorer(make_bundle()), [], Scorer._encode

    def counted(self: Scorer, table: pa.Table) -> Any:
        calls.append(table.num_rows)
        return encode(self, table)

    monkeypatch.setattr(Scorer, "_encode", counted)
    scorer.score(make_table(rows=64))
    assert calls == [64]
    scorer.score(spoiled(make_table(lengths=[2] * 64), "x", 40, [NAN, NAN]))
    assert len(calls) < 20  # two at each halving, not one a row
