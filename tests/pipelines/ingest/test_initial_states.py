"""Rows begin with the states in the data: in training and validation, however they are read, or by choice from zero."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.batches.encode import encoded_bytes
from model.batches.encoded_rows import concat
from model.bundle.bundle import state_spec
from model.errors import ConfigError, DataError, StateError
from model.network.cells import GruCell
from model.network.network import build_network
from model.scoring.metrics import results, table_metrics
from model.state import FINGERPRINT, StateSpec
from pipelines.config import RunConfig, run_config
from pipelines.ingest import batches as batching
from pipelines.ingest import scan as ingest
from pipelines.ingest.fit_cache import fitted_data, is_current
from pipelines.ingest.fit_signature import signature_of, store
from pipelines.ingest.fitted_data import FittedData, load_fitted, save_fitted
from pipelines.ingest.initial_states import InitialStates
from pipelines.ingest.read_task import Request, RowReader
from pipelines.train import loop
from pipelines.train.job import Report, job_on

LENGTHS = [3, 0, 5, 1, 2, 4, 0, 6, 2, 3, 7, 1]
CURE = ", or leave the states out by data.initial_states=ignore"


def with_states(table: pa.Table, shapes: tuple[int, ...] = (4, 4, 3, 3), name: str | None = None) -> pa.Table:
    """The table with states; every third row has none."""
    random = np.random.default_rng(7)
    for number, width in enumerate(shapes):
        values = random.normal(size=(table.num_rows, width)).astype(np.float32).tolist()
        column = [None if row % 3 == 2 else state for row, state in enumerate(values)]
        table = table.append_column(f"rnn_cell_state_{number}", pa.array(column, pa.list_(pa.float32(), width)))
    return table if name is None else table.replace_schema_metadata({FINGERPRINT: name})


@pytest.fixture
def make_run(tmp_path: Path, make_config: Callable[..., Any]) -> Callable[..., RunConfig]:
    """make_run(tables by file, data=…, train=…, **model): a run that trains and validates on them and those before."""

    def make(
        tables: dict[str, pa.Table], *, data: Any = None, train: Any = None, name: str = "run", **model: Any
    ) -> RunConfig:
        (tmp_path / "data").mkdir(exist_ok=True)
        for file, table in tables.items():
            pq.write_table(table, tmp_path / "data" / file, row_group_size=4)
        path = str(tmp_path / "data")
        return run_config(
            {
                "name": name,
                "output": str(tmp_path / "runs"),
                "data": {"train": path, "validation": path, **(data or {})},
                "model": make_config(num_classes=3, **model).model_dump(mode="json"),
                "train": {"batch_sequences": 4, "steps": 4, "learning_rate": 0.1, **(train or {})},
            },
            where="run.yaml",
        )

    return make


def trained(config: RunConfig) -> tuple[FittedData, Report]:
    """What a run's only worker reports last, without Ray."""
    prepared, reports = ingest.fit_data(config), list[Report]()
    reader = RowReader(prepared.columns, prepared.label, prepared.state_spec)

    def batches(plan: Any, start: int, stop: int) -> Iterator[Any]:
        return batching.batches(plan, reader, 0, 1, start, stop)

    job = job_on(config, prepared, batches=batches, report=reports.append, provenance=prepared.provenance)
    loop.run(job)
    return prepared, reports[-1]


def validated(report: Report, table: pa.Table, *, states: bool) -> float:
    """The loss over all rows of a table, from their states or from zero."""
    bundle = report.bundle
    spec = state_spec(bundle) if states else None
    return results(bundle.label, table_metrics(bundle.network(), bundle.columns, bundle.label, table, spec))["loss"]


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("unroll", [None, 2])
def test_training_and_validation_begin_with_the_states(
    make_run: Any, make_table: Any, prediction: str, unroll: int | None
) -> None:
    table = with_states(make_table("classification", prediction, lengths=LENGTHS))
    how = {"prediction_type": prediction, "train": {"unroll_steps": unroll}}
    prepared, read = trained(make_run({"a.parquet": table}, **how))
    assert prepared.state_spec == state_spec(read.bundle)
    assert read.metrics["validation_loss"] == pytest.approx(validated(read, table, states=True), rel=1e-5)
    assert abs(validated(read, table, states=True) - validated(read, table, states=False)) > 1e-3

    _, ignored = trained(make_run({}, data={"initial_states": "ignore"}, **how))
    assert ignored.metrics["validation_loss"] == pytest.approx(validated(ignored, table, states=False), rel=1e-5)
    bare_table = table.select([name for name in table.column_names if not name.startswith("rnn_cell_state")])
    _, bare = trained(make_run({"a.parquet": bare_table}, **how))
    assert bare.bundle.fingerprint == ignored.bundle.fingerprint != read.bundle.fingerprint


def test_the_models_that_computed_the_states_are_in_the_provenance(make_run: Any, make_table: Any) -> None:
    tables = {f"{name}.parquet": with_states(make_table(rows=4), name=name) for name in ("one", "two")}
    tables |= {"nobody's.parquet": with_states(make_table(rows=4)), "without.parquet": make_table(rows=4)}
    prepared, report = trained(make_run(tables))
    assert report.bundle.provenance["initial_states"] == {"models": ["one", "two"], "unnamed_files": 1}
    assert str(prepared.states) == (
        "rows begin with the states in the data (of one, two; files that name no model: 1); "
        "data.initial_states=ignore leaves them out"
    )


def test_rows_bring_their_states_in_any_order_and_zeros_where_they_have_none(make_run: Any, make_table: Any) -> None:
    table = with_states(make_table(lengths=LENGTHS))
    prepared = ingest.fit_data(make_run({"a.parquet": table, "b.parquet": make_table(lengths=LENGTHS)}))
    reader = RowReader(prepared.columns, prepared.label, prepared.state_spec)
    check_rows(prepared, table, partial(map, reader.read))


@pytest.mark.usefixtures("local_ray", "large")
def test_states_travel_through_the_tasks_of_ray_data(make_run: Any, make_table: Any) -> None:
    table = with_states(make_table(lengths=LENGTHS))
    config = make_run({"a.parquet": table, "b.parquet": make_table(lengths=LENGTHS)})
    prepared = ingest.fit_data(config)
    reader = RowReader(prepared.columns, prepared.label, prepared.state_spec)
    check_rows(prepared, table, batching.reading(prepared.train, reader, ()))


def check_rows(prepared: FittedData, table: pa.Table, read: Any) -> None:
    """Rows of two files, the second without states, asked for backwards, have what their file says."""
    numbers = np.arange(24)[::-1].copy()
    found = concat(list(read([Request.of(prepared.train, part) for part in (numbers[:7], numbers[7:])])))
    assert prepared.state_spec is not None
    expected = prepared.state_spec.from_arrow(table)
    assert expected is not None
    assert found.rows_B.tolist() == numbers.tolist()
    assert found.state is not None
    for mine, theirs in zip(found.state, expected, strict=True):
        np.testing.assert_array_equal(mine[::-1], np.concatenate([theirs, np.zeros_like(theirs)]))
    assert not expected[0][2].any()


def test_memory_is_counted_with_the_states(make_run: Any, make_table: Any) -> None:
    prepared = ingest.fit_data(make_run({"a.parquet": with_states(make_table(lengths=LENGTHS))}))
    with_them, without = (encoded_bytes(prepared.train, prepared.columns, spec) for spec in (prepared.state_spec, None))
    assert with_them - without == 12 * 4 * (4 + 4 + 3 + 3)


# What does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "model", "told"),
    [
        ((4, 4, 3, 5), {}, "column 'rnn_cell_state_3': must hold 3 numbers, but holds 5; another model wrote it"),
        (
            (4, 4, 3),
            {},
            "a state must have all of rnn_cell_state_0, rnn_cell_state_1, rnn_cell_state_2, rnn_cell_state_3 or none, "
            "but rnn_cell_state_3 is missing",
        ),
        (
            (4, 3, 3),
            {"cell_type": "gru"},
            "column 'rnn_cell_state_2': is no part of this model's state, which has rnn_cell_state_0, "
            "rnn_cell_state_1; another model wrote it",
        ),
    ],
    ids=["width", "missing", "too many"],
)
def test_states_of_another_shape_are_told_from_the_schemas(
    make_run: Any, make_table: Any, tmp_path: Path, shapes: tuple[int, ...], model: Any, told: str
) -> None:
    cell = model.get("cell_type", "lstm")
    config = make_run(
        {"a.parquet": make_table(rows=4), "b.parquet": with_states(make_table(rows=4), shapes)}, cell=cell
    )
    with pytest.raises(StateError) as error:
        ingest.fit_data(config)
    place = f"{tmp_path}/data/b.parquet{', ' if told.startswith('column') else ': '}"
    assert str(error.value) == f"{place}{told}{CURE}"
    ignoring = make_run({}, data={"initial_states": "ignore"}, cell=cell)
    assert ingest.fit_data(ignoring).states == InitialStates()


def test_a_row_whose_state_is_bad_is_a_bad_row(make_run: Any, make_table: Any, tmp_path: Path) -> None:
    table = with_states(make_table(lengths=[2] * 8))
    states = table["rnn_cell_state_1"].to_pylist()
    states[4] = [0.0] * 3
    table = table.set_column(table.column_names.index("rnn_cell_state_1"), "rnn_cell_state_1", pa.array(states))
    config = make_run({"a.parquet": table}, data={"validation": None, "validation_fraction": 0})
    with pytest.raises(DataError) as error:
        ingest.fit_data(config)
    assert str(error.value) == (
        f"{tmp_path}/data/a.parquet, row 4, column 'rnn_cell_state_1': must hold 4 numbers, but holds 3; "
        "or leave such rows out with data.on_bad_rows=skip"
    )
    skipping = make_run({}, data={"validation": None, "validation_fraction": 0, "on_bad_rows": "skip"})
    prepared = ingest.fit_data(skipping)
    assert (prepared.rows.used, prepared.rows.bad) == (7, 1)


def test_a_state_as_wide_as_the_input_is_known_once_the_columns_are(
    make_run: Any, make_table: Any, register: Any
) -> None:
    class Remembering(GruCell):
        def zero_state(self, rows: int) -> Any:
            return self.bias.new_zeros(rows, self.num_units), self.bias.new_zeros(rows, self.input_size)

    register("remembering", Remembering)
    table = make_table(rows=8)
    bare = ingest.fit_data(make_run({"a.parquet": table}, cell="remembering", num_units=[4]))
    assert bare.state_spec is None
    width = network_of(bare, make_run({}, cell="remembering", num_units=[4])).inputs.width
    prepared = ingest.fit_data(
        make_run({"a.parquet": with_states(table, (4, width))}, cell="remembering", num_units=[4])
    )
    assert prepared.state_spec == StateSpec.of([(4,), (width,)])


def network_of(prepared: FittedData, config: RunConfig) -> Any:
    return build_network(config.model, prepared.columns, prepared.label, 0)


# Fitted once ------------------------------------------------------------------------------------------------------


def test_what_is_stored_holds_while_the_states_fit_the_model(make_run: Any, make_table: Any) -> None:
    config = make_run({"a.parquet": with_states(make_table(rows=8), name="one")})
    prepared = fitted_data(config)
    assert load_fitted(config.directory).states == prepared.states == InitialStates(prepared.state_spec, ("one",))
    assert is_current(config)
    assert not is_current(make_run({}, data={"initial_states": "ignore"}))
    other = make_run({}, num_units=[5, 3])
    assert not is_current(other)
    with pytest.raises(StateError, match=r"must hold 5 numbers, but holds 4; another model wrote it, or leave the"):
        fitted_data(other)
    said: list[str] = []
    fitted_data(make_run({}, num_units=[5, 3], data={"initial_states": "ignore"}), say=said.append)
    assert said == [
        "fitting the columns again: data.initial_states was 'read', but is 'ignore'; model.num_units was [4, 3], but "
        "is [5, 3]"
    ]


def test_without_states_another_shape_of_the_model_needs_no_scan(make_run: Any, make_table: Any) -> None:
    fitted_data(make_run({"a.parquet": make_table(rows=8)}))
    assert is_current(make_run({}, num_units=[5, 3]))


def test_a_run_of_an_earlier_version_goes_on_from_zero_as_it_began(make_run: Any, make_table: Any) -> None:
    config = make_run({"a.parquet": with_states(make_table(rows=8))})
    save_fitted(config.directory, replace(ingest.fit_data(config), states=None))
    assert load_fitted(config.directory).states is None
    assert fitted_data(config, resume=True).state_spec is None
    assert load_fitted(config.directory).states is None
    fresh = make_run({}, name="fresh")
    save_fitted(fresh.directory, replace(ingest.fit_data(fresh), states=None))
    signature = signature_of(fresh)
    del signature["settings"]["data.initial_states"]
    store(fresh.directory, signature)
    assert fitted_data(fresh).state_spec is not None


def test_a_resumed_run_needs_the_states_it_began_with(make_run: Any, make_table: Any) -> None:
    table = make_table(rows=8)
    config = make_run({"a.parquet": with_states(table, name="one")})
    fitted_data(config)
    changed = make_run({"a.parquet": with_states(table, name="two")})
    with pytest.raises(
        ConfigError, match=re.escape(f"{config.directory}: a resumed run goes on with the data it began")
    ):
        fitted_data(changed, resume=True)
