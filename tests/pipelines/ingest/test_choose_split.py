"""By what the rows of a path are split, and what is amiss with split and inputs."""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ConfigError, DataError
from model.tables.prepared import Prepared, PreparedLabel, with_prepared
from pipelines.config import RunConfig, run_config
from pipelines.ingest.choose_split import SUMMARY
from pipelines.ingest.fit_cache import fitted_data
from pipelines.ingest.fitted_data import FittedData
from pipelines.prepare import workspace

PLAYERS, PIECES = 40, 5


def pieces(**more: Any) -> pa.Table:
    """Pieces of players, each of which has one label: nothing can be learned of players that are not among them."""
    random = np.random.default_rng(0)
    rows, player = PLAYERS * PIECES, np.repeat(np.arange(PLAYERS), PIECES)
    columns = {
        "player": player + 1000,
        "place": np.tile(np.arange(PIECES), PLAYERS),
        "x": [[float(value)] for value in random.normal(size=rows)],
        "amount": random.integers(0, 50, rows),
        "y": random.integers(0, 2, PLAYERS)[player],
    }
    return pa.table({**columns, **more})


def prepared(table: pa.Table, **told: Any) -> pa.Table:
    """The table with what `prepare` tells of it."""
    return table.replace_schema_metadata(with_prepared(table.schema, Prepared(**told)).metadata)


@pytest.fixture
def fit(tmp_path: Path, make_config: Any) -> Callable[..., tuple[FittedData, list[str]]]:
    """fit(table or tables by path, model=…, **data): what was fitted, and the lines that were said."""

    def run(tables: Any, *, model: Any = None, **data: Any) -> tuple[FittedData, list[str]]:
        for name, table in ({"a": tables} if isinstance(tables, pa.Table) else tables).items():
            path = tmp_path / "data" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path, row_group_size=64)
        said: list[str] = []
        return fitted_data(config_of(tmp_path, make_config, model, data), say=said.append), said[1:]

    return run


def config_of(tmp_path: Path, make_config: Any, model: Any, data: Any) -> RunConfig:
    shown = {"columns": {"sequence": [{"type": "numeric", "name": "x"}]}, **(model or {})}
    config = make_config(prediction="single_value", **shown).model_dump(mode="json")
    told = {"train": str(tmp_path / "data"), "validation_fraction": 0.25, **data}
    return run_config({"output": str(tmp_path / "runs"), "data": told, "model": config}, where="run.yaml")


def sides(found: FittedData, values: Any) -> tuple[set[Any], set[Any]]:
    """The values that training rows have, and those that validation rows have."""
    assert found.validation is not None
    assert found.train.selected is not None
    assert found.validation.selected is not None
    column = np.asarray(values)
    return set(column[found.train.selected].tolist()), set(column[found.validation.selected].tolist())


# The key ----------------------------------------------------------------------------------------------------------


def test_the_key_that_prepare_wrote_is_split_by(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    table = pieces()
    found, said = fit(prepared(table, key=("player",), index="place"))
    training, validation = sides(found, table["player"])
    assert not training & validation
    assert len(validation) > 2
    assert said == ["validation split: 25 % of the keys 'player' (as `prepare` wrote them)"]
    assert caplog.messages == []
    named, said = fit(table, key="player")
    assert sides(named, table["player"]) == (training, validation)
    assert said == ["validation split: 25 % of the keys 'player' (data.key)"]


def test_a_key_of_several_columns_is_split_by_as_one(fit: Any) -> None:
    table = pieces(game=np.repeat(np.arange(4), 2).tolist() * 25)
    pairs = [f"{a} {b}" for a, b in zip(table["player"].to_pylist(), table["game"].to_pylist(), strict=True)]
    found, said = fit(prepared(table, key=("player", "game")))
    training, validation = sides(found, pairs)
    assert not training & validation
    assert said == ["validation split: 25 % of the keys 'player' and 'game' (as `prepare` wrote them)"]
    assert np.intersect1d(*(list(side) for side in sides(found, table["player"]))).size
    named, _ = fit(table, key=["player", "game"])
    assert sides(named, pairs) == (training, validation)


def test_the_key_that_is_named_wins(fit: Any) -> None:
    table = pieces(team=[str(row // 20) for row in range(PLAYERS * PIECES)])
    found, said = fit(prepared(table, key=("player",)), key="team")
    assert not set.intersection(*sides(found, table["team"]))
    assert said == ["validation split: 25 % of the keys 'team' (data.key)"]


def test_pieces_of_one_series_are_split_by_rows(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, said = fit(prepared(pieces(), index="place"))
    assert said == ["validation split: 25 % of the rows, pieces of one series"]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (pieces().rename_columns(["player", "sequence_index", "x", "amount", "y"]), "'player'"),
        (pieces(), "'player'"),
        (pieces().rename_columns(["user_id", "place", "x", "amount", "y"]), "'user_id'"),
    ],
    ids=["by its pieces", "by its labels", "by its name"],
)
def test_a_column_like_a_key_is_warned_of(
    fit: Any, table: pa.Table, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = (
        f"rows that share {names} may stand in training and in validation, whose metrics are then too good: if it "
        f"names whose rows they are, set data.key={names[1:-1]}"
    )
    found, said = fit(table)
    assert said == ["validation split: 25 % of the rows, each by itself"]
    assert caplog.messages == [told]
    assert set.intersection(*sides(found, table[0]))
    caplog.clear()
    fit(table)  # what is stored tells it again
    assert caplog.messages == [told]
    caplog.clear()
    fit(table, key=names[1:-1])
    fit(table, validation_fraction=0)
    assert caplog.messages == []


def test_a_column_of_pieces_is_warned_of_though_the_model_reads_it(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    table = pieces().rename_columns(["player", "sequence_index", "x", "amount", "y"])
    context = [{"type": "numeric", "name": "player"}]
    fit(table, model={"columns": {"sequence": [{"type": "numeric", "name": "x"}], "context": context}})
    assert "rows that share 'player' may stand in training and in validation" in caplog.messages[0]


def test_other_columns_are_not_taken_for_keys(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    rows = PLAYERS * PIECES
    fit(
        pieces(
            player=range(rows),  # a row each
            country=random.choice(["de", "at", "fr"], rows).tolist(),
            year=random.integers(2000, 2020, rows),
            name=[f"row {row}" for row in range(rows)],
        )
    )
    assert caplog.messages == []


def test_pieces_without_a_key_among_the_columns_are_told(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    fit(pieces().rename_columns(["player", "sequence_index", "x", "amount", "y"]).drop_columns("player"))
    assert caplog.messages == [
        "a sequence_index says that rows are pieces of something, and these may stand in training and in validation, "
        "whose metrics are then too good: name the column whose pieces they are with data.key"
    ]


# By time ----------------------------------------------------------------------------------------------------------


def test_the_latest_rows_validate(fit: Any) -> None:
    day = dt.datetime(2024, 1, 1)
    times = [day + dt.timedelta(hours=int(hour)) for hour in np.random.default_rng(0).permutation(200)]
    table = pieces(at=pa.array(times, pa.timestamp("ms")), y=[int(time > times[0]) for time in times])
    parts = {
        "a": table.slice(0, 100),
        "b": table.slice(100).set_column(5, "at", pa.array(times[100:], pa.timestamp("ns"))),
    }
    found, said = fit(parts, validation_by_time="at")
    training, validation = sides(found, np.array(times, "datetime64[us]"))
    assert (len(training), len(validation)) == (150, 50)
    assert max(training) < min(validation) == day + dt.timedelta(hours=150)
    assert said == [
        "validation split: the rows of 'at' = 2024-01-07T06:00:00.000000 or later, whatever entity they are of "
        "(data.key would keep it together)"
    ]


def test_rows_of_one_time_stay_together_and_some_rows_train(fit: Any) -> None:
    table = pieces(place=[0] * 50 + [1] * 150)
    found, _ = fit(table, validation_by_time="place", validation_fraction=0.1)
    assert sides(found, table["place"]) == ({0}, {1})
    with pytest.raises(DataError) as raised:
        fit(pieces(place=[3] * 200), validation_by_time="place")
    assert str(raised.value) == (
        "column 'place': the time to split by must differ, but is the same in all rows; name another column with "
        "data.validation_by_time"
    )


def test_with_a_key_the_keys_that_begin_last_validate(fit: Any) -> None:
    order = np.random.default_rng(1).permutation(PLAYERS)
    start = np.repeat(order, PIECES) * 10
    table = pieces(at=start + np.tile([0, 200, 30, 40, 90], PLAYERS))
    found, said = fit(table, key="player", validation_by_time="at", filter="amount >= 0")
    training, validation = sides(found, table["player"])
    assert not training & validation
    assert validation == {1000 + player for player in range(PLAYERS) if order[player] >= 30}
    assert said == ["validation split: the keys 'player' whose first row is of 'at' = 300 or later"]


def test_only_rows_that_the_filter_keeps_count_for_the_time(fit: Any) -> None:
    table = pieces(place=range(200))
    found, _ = fit(table, validation_by_time="place", filter="place < 100")
    assert found.validation is not None
    assert (found.train.rows, found.validation.rows) == (75, 25)


def test_a_missing_time_is_told_with_the_way_out(fit: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        fit(pieces(place=[*range(199), None]), validation_by_time="place")
    assert str(raised.value) == (
        f"{tmp_path}/data/a.parquet, row 199, column 'place': the time to split by must be known in every row, but is "
        'missing in one; leave such rows out with data.filter="`place` is not null"'
    )


def test_a_split_by_time_needs_rows_to_split(fit: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        fit(pieces(), validation_by_time="place", validation_fraction=0)
    assert str(raised.value) == (
        "run.yaml: data: validation_by_time splits off the latest training rows, but validation_fraction is 0; set one "
        "of the two"
    )


# The future among the inputs, and parts of a split ------------------------------------------------------------------

FUTURE = (
    "column 'ts_last' is known only when a sequence has ended, but the model predicts before: it sees the future, its "
    "metrics are too good, and predictions event by event will differ; leave it out of model.columns"
)
WITH_TIME = {
    "columns": {
        "sequence": [{"type": "numeric", "name": "x"}],
        "context": [{"type": "numeric", "name": "ts_first"}, {"type": "numeric", "name": "ts_last"}],
    }
}


@pytest.mark.parametrize("metadata", [True, False], ids=["prepared", "of an earlier version"])
def test_what_is_known_at_the_end_is_no_input_of_what_predicts_before(
    fit: Any, metadata: bool, caplog: pytest.LogCaptureFixture
) -> None:
    table = pieces(ts_first=range(200), ts_last=range(1, 201), sequence_index=[0] * 200)
    steps = table.set_column(table.column_names.index("y"), "y", pa.array([[0], [1]] * 100))
    if metadata:
        table, steps = (prepared(each, key=("player",), known_at_end=("ts_last", "y")) for each in (table, steps))
    fit(steps, model={**WITH_TIME, "prediction_type": "multiple_value"})
    assert [line for line in caplog.messages if "future" in line] == [FUTURE]
    caplog.clear()
    fit(steps, model={"prediction_type": "multiple_value"})
    fit(table, model=WITH_TIME)
    assert [line for line in caplog.messages if "future" in line] == []


def test_a_label_that_is_a_later_value_lies_before_the_end_too(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    label = PreparedLabel(column="y", source="x", shift=1)
    table = pieces(ts_first=range(200), ts_last=range(1, 201))
    fit(prepared(table, known_at_end=("ts_last",), label=label), model=WITH_TIME)
    assert caplog.messages == [FUTURE]


def mixed(directory: Path) -> str:
    return (
        f"data.train must hold one part of a split, but {directory} holds train and test as `prepare` split them; name "
        "the directory of each: data.train, data.test, or train on all of them with data.mixed_parts=true"
    )


def test_parts_of_a_split_are_not_mixed_unless_asked(fit: Any, tmp_path: Path) -> None:
    parts = {f"{part}/a": prepared(pieces(), key=("player",), split=part) for part in ("train", "test")}
    with pytest.raises(ConfigError) as raised:
        fit(parts)
    assert str(raised.value) == mixed(tmp_path / "data")
    found, _ = fit(parts, mixed_parts=True)
    assert found.rows.rows == 400
    found, _ = fit({}, train=str(tmp_path / "data" / "train"))
    assert found.rows.rows == 200


def test_parts_that_an_earlier_version_wrote_are_known_by_its_summary(fit: Any, tmp_path: Path) -> None:
    parts = {f"{part}/a": pieces() for part in ("train", "test")}
    found, _ = fit(parts)  # directories that happen to have such names
    assert found.rows.rows == 400
    assert SUMMARY == workspace.SUMMARY
    summary = {"sequences": {"train": 200, "validation": 0, "test": 200}}
    (tmp_path / "data" / SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(ConfigError) as raised:
        fit({}, validation_fraction=0.3)
    assert str(raised.value) == mixed(tmp_path / "data")


# Classes ----------------------------------------------------------------------------------------------------------


def test_a_class_that_only_held_out_rows_have_is_one(fit: Any, caplog: pytest.LogCaptureFixture) -> None:
    table = pieces(place=range(200), y=["a", "b"] * 90 + ["late"] * 20)
    with caplog.at_level(logging.WARNING, "dynamic_rnn"):
        found, _ = fit(table, validation_by_time="place")
    assert found.label.classes == ("a", "b", "late")
    assert found.report["label"]["classes"] == [("a", 0.5), ("b", 0.5), ("late", 0.0)]
