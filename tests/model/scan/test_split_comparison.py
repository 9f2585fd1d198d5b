"""Training and validation paths: they must agree as the files of one data set do, and what differs is told."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.config import ModelConfig
from model.errors import DataError
from model.features.ordered_merge import OrderedMerge
from model.scan.fit import fit_merged
from model.scan.fragment_scan import scan_table
from model.scan.split_comparison import Comparison
from pipelines.config import RunConfig, run_config
from pipelines.ingest import scan as ingest

SOURCE = {"type": "vocabulary", "name": "country"}


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.fixture
def config(make_config: Any) -> Callable[..., ModelConfig]:
    """config(**source): a number a step, and a vocabulary a row."""

    def make(**source: Any) -> Any:
        context = [{"type": "one_hot", "source": SOURCE | source}]
        return make_config(columns={"sequence": [{"type": "numeric", "name": "x"}], "context": context})

    return make


def compared(
    config: ModelConfig, training: list[pa.Table], validation: list[pa.Table], *, unseen_labels: bool = False
) -> list[list[str]]:
    """The lines, once for each order in which the parts may come."""
    parts = [scan_table(table, config, None, fit=True, place="").stats for table in training]
    parts += [
        scan_table(table, config, None, fit=True, place="", unseen_labels=unseen_labels).stats for table in validation
    ]
    found = []
    for order in itertools.permutations(range(len(parts))):
        merged = OrderedMerge()
        comparison = Comparison(config, merged, len(training), "v.parquet", unseen_labels=unseen_labels)
        for number in order:
            if number < len(training):
                merged.add(number, parts[number])
            else:
                comparison.add(parts[number])
        _, label = fit_merged(config, merged.total)
        found.append(list(comparison.lines(label)))
    return found


def rows(make_table: Any, countries: str, values: list[float]) -> pa.Table:
    table = make_table(lengths=[1] * len(countries))
    table = replaced(table, "y", [[number % 3] for number in range(len(countries))])
    table = replaced(table, "country", list(countries))
    return replaced(table, "x", [[values[row % len(values)]] for row in range(len(countries))])


@pytest.mark.parametrize(
    ("source", "validation", "told"),
    [
        ({}, ["aab", "abb"], None),
        ({}, ["aac", "abd"], "33.3 % of the values in validation rows are unknown, 0 % in training rows"),
        ({"keys": ["a"]}, ["aab", "aab"], None),
        ({"keys": ["a"]}, ["bbb", "abb"], "83.3 % of the values in validation rows are unknown, 50 % in training rows"),
        ({"max_keys": 1}, ["bbb", "bbb"], None),
    ],
)
def test_unknown_values_are_told_by_their_share(
    make_table: Any, config: Any, source: Any, validation: list[str], told: str | None
) -> None:
    parts = [rows(make_table, text, [1.0]) for text in validation]
    training = [rows(make_table, "aab", [1.0]), rows(make_table, "abb", [1.0])]
    expected = [] if told is None else [f"column 'country': {told}"]
    assert all(lines == expected for lines in compared(config(**source), training, parts))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([-2.0, 5.5], None),
        ([-2.1], "-2.1 … 1"),
        ([2.0, 7.5], "1 … 7.5"),
        ([0.0, 7.5, -90.0], "-90 … 7.5"),
    ],
)
def test_numbers_far_outside_are_told(make_table: Any, config: Any, values: list[float], told: str | None) -> None:
    training = [rows(make_table, "aab", [0.5, 3.0]), rows(make_table, "abb", [0.5, 0.7])]
    validation = [rows(make_table, "aaa", [1.0]), rows(make_table, "aaa", values)]
    expected = [f"column 'x': validation rows hold {told}, far outside the 0.5 … 3 of the training rows"]
    assert all(lines == (expected if told else []) for lines in compared(config(), training, validation))


def test_vectors_of_another_length_are_refused(make_table: Any, make_config: Any) -> None:
    config = make_config(columns={"sequence": [{"type": "numeric", "name": "vector"}]})
    training = make_table(lengths=[1, 1, 1])
    narrow = replaced(training, "vector", [[[1.0, 2.0]]] * 3)
    told = (
        "v.parquet, column 'vector': every entry must hold as many values as in the training rows, 3, but some hold 2"
    )
    with pytest.raises(DataError) as raised:
        compared(config, [training], [narrow])
    assert str(raised.value) == told


def test_classes_that_training_never_had_are_refused(make_table: Any, config: Any) -> None:
    training = rows(make_table, "aaa", [1.0])
    validation = replaced(training, "y", [[0], [7], [8]])
    with pytest.raises(DataError) as raised:
        compared(config(), [training], [validation])
    assert str(raised.value) == (
        "v.parquet, column 'y': labels must be of the classes that the training rows have, but 2 others stand here "
        "(7, 8); declare model.classes with all of them, count them as wrong with data.unseen_labels=count, or leave "
        "these rows out"
    )


@pytest.mark.parametrize("declared", [{}, {"num_classes": 3}], ids=["learned", "declared"])
def test_classes_that_training_never_had_are_told_where_they_are_counted(
    make_table: Any, make_config: Any, declared: Any
) -> None:
    training, validation = make_table(lengths=[2, 2, 2]), make_table(lengths=[1, 2])
    training = replaced(training, "y", [[0, 1], [2, 2], [0, 0]])
    validation = replaced(validation, "y", [[0], [7, 7]])
    for lines in compared(make_config(**declared), [training], [validation], unseen_labels=True):
        assert lines[:1] == [
            "column 'y': 2 of 3 labels of the validation rows are of 1 classes that the training rows do not have (7): "
            "they count as wrong and have no loss, see unseen_labels; declare model.classes with them to have them "
            "learned, or refuse them with data.unseen_labels=error"
        ]


# Through the pass over the data -----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, make_config: Any) -> Callable[[pa.Table, pa.Table], RunConfig]:
    """run(training, validation): the config of a run over two paths."""

    def make(training: pa.Table, validation: pa.Table) -> RunConfig:
        for name, table in (("train", training), ("validation", validation)):
            (tmp_path / name).mkdir()
            pq.write_table(table, tmp_path / name / "a.parquet", row_group_size=4)
        data = {"train": str(tmp_path / "train"), "validation": str(tmp_path / "validation")}
        model = make_config(num_classes=3).model_dump(mode="json")
        return run_config({"output": str(tmp_path / "runs"), "data": data, "model": model}, where="run.yaml")

    return make


@pytest.mark.usefixtures("local_ray")
def test_a_run_over_two_paths_tells_what_differs(run: Any, make_table: Any, caplog: pytest.LogCaptureFixture) -> None:
    training, validation = make_table(rows=12), make_table(rows=12, seed=1)
    validation = replaced(validation, "country", ["it"] * 3 + ["fr"] * 9)
    validation = replaced(validation, "x", [[1000 * value for value in steps] for steps in validation["x"].to_pylist()])
    validation = replaced(validation, "y", validation["y"].cast(pa.list_(pa.int32())).combine_chunks())
    with caplog.at_level(logging.WARNING, "dynamic_rnn"):
        prepared = ingest.fit_data(run(training, validation.drop_columns("age")))
    assert (prepared.train.rows, prepared.validation.rows) == (12, 12)
    numbers, values = sorted(caplog.messages, key=len, reverse=True)
    assert numbers.startswith("column 'x': validation rows hold ")
    assert values == "column 'country': 25 % of the values in validation rows are unknown, 0 % in training rows"


def test_paths_that_contradict_each_other_are_told_with_both_files(run: Any, make_table: Any, tmp_path: Path) -> None:
    training = make_table(rows=12)
    config = run(training, replaced(training, "country", list(range(12))))
    with pytest.raises(DataError) as raised:
        ingest.fit_data(config)
    assert str(raised.value) == (
        f"{tmp_path}/validation/a.parquet, column 'country': the files of a data set must agree on each column's type, "
        f"but here it is int64 and in {tmp_path}/train/a.parquet it is string; write one of them again with the "
        f"other's type"
    )
