"""The run that `inspect` proposes: for several kinds of tables it reads the data as it is, and trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.settings.yaml_text import parse_yaml
from pipelines.config import RunConfig, run_config
from pipelines.ingest.scan import fit_data
from pipelines.inspect.column_profile import profile_column
from pipelines.inspect.proposal import declaration
from pipelines.inspect.report import report
from pipelines.inspect.roles import Role
from pipelines.inspect.run import Inspection, inspect_data
from pipelines.train.run import train

pytestmark = pytest.mark.usefixtures("local_ray")


def lists(lengths: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, *np.cumsum(lengths)], pa.int32()), values)


def write(directory: Path, table: pa.Table) -> Path:
    directory.mkdir(exist_ok=True)
    pq.write_table(table, directory / "a b.parquet", row_group_size=60)
    return directory


def numeric(random: np.random.Generator, lengths: np.ndarray) -> dict[str, Any]:
    steps = int(lengths.sum())
    gaps = pa.array(random.normal(size=steps), mask=random.random(steps) < 0.2)
    return {"x": lists(lengths, pa.array(random.normal(5, 2, steps))), "gaps: with #": lists(lengths, gaps)}


def categorical(random: np.random.Generator, lengths: np.ndarray) -> dict[str, Any]:
    steps = int(lengths.sum())
    tags = pa.array([random.choice(["a", "b"], count).tolist() for count in random.integers(0, 3, steps)])
    return {
        "kind": lists(lengths, pa.array(random.choice(["yes", "no", "日本", "1"], steps).tolist())),
        "item_id": lists(lengths, pa.array(random.integers(0, 60, steps))),
        "tags": lists(lengths, tags),
        "país": random.choice([f"c{number}" for number in range(20)], len(lengths)),
    }


def table_of(kind: str) -> pa.Table:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 9, 160)
    steps = int(lengths.sum())
    vector = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=steps * 3)), 3)
    columns: dict[str, dict[str, Any]] = {
        "numeric": {**numeric(random, lengths), "label": random.choice(["no", "yes", "maybe"], 160)},
        "categorical": {**categorical(random, lengths), "label": random.integers(0, 4, 160)},
        "mixed": {
            "key": [f"k{row % 80}" for row in range(160)],
            **numeric(random, lengths),
            **categorical(random, lengths),
            "vector": lists(lengths, vector),
            "age": pa.array(random.uniform(18, 80, 160), mask=random.random(160) < 0.1),
            "weight": random.uniform(0.5, 2, 160),
            "target": random.normal(50, 9, 160),
        },
        "per step": {**numeric(random, lengths), "target": lists(lengths, pa.array(random.choice(["u", "v"], steps)))},
        "per step numbers": {**categorical(random, lengths), "y": lists(lengths, pa.array(random.normal(size=steps)))},
    }
    return pa.table(columns[kind])


PROPOSED: dict[str, tuple[str, str]] = {
    "numeric": ("classification", "single_value"),
    "categorical": ("classification", "single_value"),
    "mixed": ("linear_regression", "single_value"),
    "per step": ("classification", "multiple_value"),
    "per step numbers": ("linear_regression", "multiple_value"),
}


@pytest.fixture
def proposed(tmp_path: Path) -> Callable[[str], tuple[Inspection, RunConfig]]:
    def make(kind: str) -> tuple[Inspection, RunConfig]:
        inspection = inspect_data(str(write(tmp_path / "data", table_of(kind))))
        assert inspection.proposal.text is not None, inspection.proposal.reason
        mapping = parse_yaml(inspection.proposal.text, where="proposal")
        mapping["output"] = str(tmp_path / "runs")
        return inspection, run_config(mapping, where="proposal")

    return make


@pytest.mark.parametrize("kind", PROPOSED)
def test_the_proposed_run_reads_the_data_it_was_made_from(
    kind: str, proposed: Callable[[str], tuple[Inspection, RunConfig]]
) -> None:
    inspection, run = proposed(kind)
    assert (run.model.problem_type.value, run.model.prediction_type.value) == PROPOSED[kind]
    prepared = fit_data(run)
    used = {name for name, role in inspection.survey.roles.items() if role.role in ("sequence", "context")}
    assert set(prepared.columns.input_names) == used
    assert prepared.validation is not None
    assert prepared.train.rows + prepared.validation.rows == 160


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROPOSED)
def test_the_proposed_run_trains_as_it_is(kind: str, proposed: Callable[[str], tuple[Inspection, RunConfig]]) -> None:
    _, run = proposed(kind)
    shorter = run.train.model_copy(update={"steps": 4, "evaluate_every_steps": 4})
    result = train(run.model_copy(update={"train": shorter}))
    assert np.isfinite(result.metrics["validation_loss"])


def test_the_proposal_says_what_it_chose(proposed: Callable[[str], tuple[Inspection, RunConfig]]) -> None:
    inspection, run = proposed("mixed")
    text = inspection.proposal.text
    assert text is not None
    assert run.data.key == "key"
    assert run.model.weight == "weight"
    assert run.model.standardize_label
    columns = {
        each["name"] if "name" in each else each["source"]["name"]: each
        for each in (item for group in parse_yaml(text, where="")["model"]["columns"].values() for item in group)
    }
    assert columns["gaps: with #"] == {
        "type": "numeric",
        "name": "gaps: with #",
        "normalizer": "zscore",
        "missing": "mean",
        "indicator": True,
    }
    assert columns["vector"] == {"type": "numeric", "name": "vector", "normalizer": "zscore"}
    assert columns["tags"] == {"type": "one_hot", "source": {"type": "vocabulary", "name": "tags"}}
    assert columns["item_id"]["type"] == "embedding"
    assert "# 60 values" in text


def test_what_cannot_be_learned_by_heart_is_hashed() -> None:
    array = pa.array([[f"item {number}"] for number in range(70_000)])
    profile, _ = profile_column(array, "item", "", np.arange(len(array)))
    declared, comment = declaration("item", profile, Role("sequence", "categorical"))
    assert declared["source"] == {"type": "hash_bucket", "name": "item", "buckets": 2**17}
    assert declared["dimension"] == 64
    assert comment.endswith("values: hashed rather than learned by heart")


def test_a_label_without_a_name_is_guessed_from_its_values(tmp_path: Path) -> None:
    table = pa.table({"x": [[1.0, 2.0]] * 40, "speaker": ["a", "b", "c", "d"] * 10})
    told = report(inspect_data(str(write(tmp_path / "data", table))))
    assert told["label"] == {
        "column": "speaker",
        "chosen": "guessed: the last column with one of a few values a row",
    }
    pd.testing.assert_series_equal(
        pd.Series({item["value"]: item["count"] for item in told["classes"]["top"]}),
        pd.Series({"a": 10, "b": 10, "c": 10, "d": 10}),
    )
