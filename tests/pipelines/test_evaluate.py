"""Evaluation: equal to metrics computed by hand from predictions; and which states rows may begin with."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from model.bundle.bundle import Bundle, save_bundle
from model.bundle.run_directory import point_to
from model.errors import ConfigError, DataError, StateError
from model.scoring.scorer import Scorer
from model.state import FINGERPRINT
from pipelines.cli.app import app
from pipelines.evaluate import evaluate, plan_evaluation
from pipelines.predict.run import predict

NAN = float("nan")
LENGTHS = [3, 0, 5, 1, 2, 4, 0, 6]
CURE = "compute them again with this model, or leave them out by --initial-states ignore"


@pytest.fixture
def evaluated(make_bundle: Callable[..., Bundle], make_table: Any, tmp_path: Path) -> Callable[..., Any]:
    """evaluated(bundle, table, **choices): metrics of two row groups, in this process."""

    def run(bundle: Bundle, table: pa.Table, **choices: Any) -> dict[str, float]:
        save_bundle(tmp_path / "bundle", bundle)
        pq.write_table(table, tmp_path / "data.parquet", row_group_size=5)
        return evaluate(str(tmp_path / "bundle"), str(tmp_path / "data.parquet"), **choices)

    return run


def with_states(table: pa.Table, bundle: Bundle, *, nulls: bool = True, seed: int = 7) -> pa.Table:
    """States of the bundle's own, by the metadata; every third row has none."""
    spec, random = Scorer(bundle).state_spec, np.random.default_rng(seed)
    missing = [nulls and row % 3 == 2 for row in range(table.num_rows)]
    for field in spec.arrow_fields():
        values = random.normal(size=(table.num_rows, field.type.list_size)).astype(np.float32).tolist()
        column = [None if none else state for state, none in zip(values, missing, strict=True)]
        table = table.append_column(field, pa.array(column, field.type))
    return table.replace_schema_metadata({FINGERPRINT: bundle.fingerprint})


# By hand ----------------------------------------------------------------------------------------------------------


def by_hand(bundle: Bundle, table: pa.Table, predictions: pa.Table) -> dict[str, float]:
    """Metrics of the contract from the columns that `predict` writes, an item after the other."""
    label, items = bundle.label, []
    for row, (steps, target) in enumerate(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)):
        weight = table["w"][row].as_py() if label.weight else 1.0
        found = {name: predictions[name][row].as_py() for name in predictions.column_names}
        if label.per_step:
            for step in range(len(steps)):
                of_step = weight[step] if isinstance(weight, list) else weight
                items.append((target[step], of_step, {name: values[step] for name, values in found.items()}))
        elif steps:
            items.append((target, weight, found))
    if "scores" in predictions.column_names:
        return {"rows": table.num_rows, **regression(items)}
    return {"rows": table.num_rows, **classification(bundle, items)}


def classification(bundle: Bundle, items: list[Any]) -> dict[str, float]:
    of_class = bundle.label.class_weights or [1.0] * len(bundle.label.class_values)
    weights = np.array([weight * of_class[target] for target, weight, _ in items])
    losses = np.array([-math.log(found["probabilities"][target]) for target, _, found in items])
    correct = np.array([found["classes"] == target for target, _, found in items])
    loss = float((losses * weights).sum() / weights.sum())
    return {
        "loss": loss,
        "weight": float(weights.sum()),
        "accuracy": float((correct * weights).sum() / weights.sum()),
        "perplexity": math.exp(loss),
        "bits_per_step" if bundle.label.per_step else "bits_per_row": loss / math.log(2),
    }


def regression(items: list[Any]) -> dict[str, float]:
    targets, weights = (np.array([item[place] for item in items]) for place in (0, 1))
    errors = np.array([found["scores"] for _, _, found in items]) - targets

    def mean(values: np.ndarray) -> float:
        return float((values * weights).sum() / weights.sum())

    return {
        "loss": mean(errors**2),
        "weight": float(weights.sum()),
        "rmse": math.sqrt(mean(errors**2)),
        "mae": mean(abs(errors)),
        "r2": 1 - mean(errors**2) / mean((targets - mean(targets)) ** 2),
    }


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("weights", ["none", "a row", "a step", "a class and row"])
@pytest.mark.parametrize("states", ["none", "own", "ignored", "unbound"])
@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("problem", [("classification", 2), ("classification", 3), ("linear_regression", 0)])
def test_metrics_are_those_by_hand_from_predictions(
    evaluated: Any, make_bundle: Any, make_table: Any, tmp_path: Path,
    problem: tuple[str, int], prediction: str, states: str, weights: str,
) -> None:  # fmt: skip
    kind, classes = problem
    if (weights == "a step" and prediction == "single_value") or (weights == "a class and row" and not classes):
        return  # there is no such thing
    table = make_table(kind, prediction, lengths=LENGTHS, num_classes=classes or 3)
    weight = None if weights == "none" else "w"
    bundle = make_bundle(kind, prediction, "lstm", num_classes=classes or 3, weight=weight)
    if weights == "a step":
        random = np.random.default_rng(3)
        column = pa.array([random.uniform(0, 2, length).tolist() for length in LENGTHS])
        table = table.set_column(table.column_names.index("w"), "w", column)
    if weights == "a class and row":
        weighted = bundle.label.model_copy(update={"class_weights": tuple(1.0 + i for i in range(classes))})
        bundle = dataclasses.replace(bundle, label=weighted)
    choices: dict[str, Any] = {}
    if states != "none":
        table = with_states(table, bundle)
    if states == "ignored":
        choices = {"initial_states": "ignore"}
    if states == "unbound":
        table, choices = table.replace_schema_metadata(None), {"unbound_states": True}

    found = evaluated(bundle, table, **choices)
    predict(
        str(tmp_path / "bundle"), str(tmp_path / "data.parquet"), str(tmp_path / "out"), keep=[],
        probabilities=bool(classes), **choices,
    )  # fmt: skip
    files = sorted((tmp_path / "out").glob("*.parquet"))
    predictions = pa.concat_tables(pq.read_table(file) for file in files)
    names = [name for name in predictions.column_names if not name.startswith("rnn_cell_state")]
    assert found == pytest.approx(by_hand(bundle, table, predictions.select(names)), rel=2e-5)
    if states in ("own", "unbound"):
        assert abs(found["loss"] - evaluated(bundle, table, initial_states="ignore")["loss"]) > 1e-3


# Whose states they are --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_states_of_another_model_end_it_with_both_fingerprints(
    evaluated: Any, make_bundle: Any, make_table: Any, tmp_path: Path
) -> None:
    bundle, other, data = make_bundle(), make_bundle(seed=5), tmp_path / "data.parquet"
    theirs = with_states(make_table(), other)
    must = f"{data}: states must be of the model that goes on from them ({bundle.fingerprint[:12]})"
    for unbound in (False, True):
        with pytest.raises(ConfigError) as told:
            evaluated(bundle, theirs, unbound_states=unbound)
        assert str(told.value) == f"{must}, but are of another ({other.fingerprint[:12]}); {CURE}"
        with pytest.raises(ConfigError) as told:
            predict(str(tmp_path / "bundle"), str(data), str(tmp_path / "out"), unbound_states=unbound)
        assert str(told.value) == f"{must}, but are of another ({other.fingerprint[:12]}); {CURE}"
    nobodys = theirs.replace_schema_metadata(None)
    unnamed = f"{must}, but the file's metadata name no model; if it is this one, say --unbound-states, else {CURE}"
    with pytest.raises(ConfigError, match=f"^{re.escape(unnamed)}$"):
        evaluated(bundle, nobodys)
    with pytest.raises(ConfigError, match=f"^{re.escape(unnamed)}$"):
        predict(str(tmp_path / "bundle"), str(data), str(tmp_path / "out"))
    assert evaluated(bundle, nobodys, unbound_states=True)["rows"] == 12
    without = evaluated(bundle, make_table())
    assert evaluated(bundle, theirs, initial_states="ignore") == without


@pytest.mark.usefixtures("here")
def test_columns_without_any_state_are_nobodys(evaluated: Any, make_bundle: Any, make_table: Any) -> None:
    table = make_table()
    for number in range(4):
        table = table.append_column(f"rnn_cell_state_{number}", pa.nulls(table.num_rows))
    assert evaluated(make_bundle(), table) == evaluated(make_bundle(), make_table())


def test_states_that_do_not_fit_are_told_before_anything_is_computed(
    evaluated: Any, make_bundle: Any, make_table: Any, tmp_path: Path
) -> None:
    table = with_states(make_table(), make_bundle()).replace_schema_metadata(None)
    with pytest.raises(StateError) as told:
        evaluated(make_bundle(cell="gru", num_units=[4, 4]), table)
    assert str(told.value) == (
        f"{tmp_path / 'data.parquet'}, column 'rnn_cell_state_2': is no part of this model's state, which has "
        f"rnn_cell_state_0, rnn_cell_state_1; another model wrote it; {CURE}"
    )
    with pytest.raises(StateError) as told:
        evaluated(make_bundle(num_units=[4, 4]), table)
    assert str(told.value) == (
        f"{tmp_path / 'data.parquet'}, column 'rnn_cell_state_2': must hold 4 numbers, but holds 3; another model "
        f"wrote it; {CURE}"
    )


# As the run has it ------------------------------------------------------------------------------------------------


@pytest.fixture
def run_bundle(make_bundle: Any, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """run_bundle(**data settings): the directory of a run, and the one of its bundle."""

    def make(**data: str) -> tuple[str, str]:
        run = tmp_path / "runs" / "a"
        save_bundle(run / "bundles" / "step_00000001", make_bundle())
        point_to(run, "best", "bundles/step_00000001")
        lines = "".join(f"  {name}: {value}\n" for name, value in data.items())
        (run / "run.yaml").write_text(f"name: a\ndata:\n  train: x\n{lines}")
        return str(run), str(run / "bundles" / "step_00000001")

    return make


@pytest.mark.usefixtures("here")
def test_bad_rows_and_states_are_treated_as_in_the_run(
    run_bundle: Any, make_bundle: Any, make_table: Any, tmp_path: Path
) -> None:
    table = with_states(make_table(lengths=[3] * 6), make_bundle(seed=5))
    values = table["x"].to_pylist()
    values[1] = values[4] = [NAN] * 3
    table = table.set_column(table.column_names.index("x"), "x", pa.array(values))
    data, alone = str(tmp_path / "data.parquet"), str(tmp_path / "alone")
    pq.write_table(table, data)
    save_bundle(alone, make_bundle())
    for path in run_bundle(on_bad_rows="skip", initial_states="ignore"):
        metrics = evaluate(path, data)
        assert (metrics["rows"], metrics["bad_rows"]) == (4, 2)
        result = predict(path, data, str(tmp_path / "out"))
        assert (result.rows, result.written_rows, result.bad_rows) == (6, 4, 2)
        with pytest.raises(
            DataError, match=r"row 1, column 'x': must be .*; or leave such rows out with --on-bad-rows skip$"
        ):
            evaluate(path, data, on_bad_rows="error")
        with pytest.raises(ConfigError, match="but are of another"):
            evaluate(path, data, initial_states="read")
    for path in (alone, *run_bundle()):
        with pytest.raises(ConfigError, match="but are of another"):
            plan_evaluation(path, data)
        with pytest.raises(DataError, match="row 1, column 'x': must be finite"):
            evaluate(path, data, initial_states="ignore")
    path, _ = run_bundle(on_bad_rows="drop")
    with pytest.raises(ConfigError) as told:
        evaluate(path, data)
    assert str(told.value) == f"{path}/run.yaml: data: on_bad_rows must be one of error, skip, but is 'drop'"


@pytest.mark.usefixtures("local_ray")
def test_the_command_refuses_before_ray_starts_and_takes_ones_word(
    make_bundle: Any, make_table: Any, tmp_path: Path
) -> None:
    bundle, data = str(tmp_path / "bundle"), str(tmp_path / "data.parquet")
    save_bundle(bundle, make_bundle())
    pq.write_table(with_states(make_table(), make_bundle()).replace_schema_metadata(None), data)
    told = CliRunner().invoke(app, ["evaluate", bundle, data], catch_exceptions=False)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith(f"dynamic-rnn: {data}: states must be of the model that goes on from them (")
    losses = []
    for words in (["--unbound-states"], ["--initial-states", "ignore"]):
        told = CliRunner().invoke(app, ["evaluate", bundle, data, *words], catch_exceptions=False)
        assert told.exit_code == 0, told.stderr
        losses.append(next(line for line in told.stdout.splitlines() if line.split()[:1] == ["loss"]))
    assert losses[0] != losses[1]
