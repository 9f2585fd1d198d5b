"""Columns fitted by one pass over the data, stored once: what is shown, who uses it, and when it no longer holds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from model.bundle.bundle import load_bundle
from model.columns import Numeric, Vocabulary
from model.errors import ConfigError, DataError
from model.features import stats
from model.features.fitted_columns import FittedColumns
from model.features.ordered_merge import DataStats, OrderedMerge, merged
from model.features.stats import ColumnStats, key_stats, stats_of
from model.scan.fit import fit_columns
from model.scan.fit_report import lines_of
from model.scan.fragment_scan import scan_fragment
from model.scan.needed_columns import read_columns
from model.settings import dump_yaml
from model.tables.parquet import find_fragments
from pipelines.cli.app import app
from pipelines.config import RunConfig, run_config
from pipelines.ingest import fit_cache
from pipelines.ingest import scan as ingest
from pipelines.ingest.fit_cache import check_fit, fitted_data, is_current, same
from pipelines.ingest.fitted_data import FittedData, load_fitted
from pipelines.train.run import train
from tests.fitting import column_stats
from tune.sweep import prepare

COLUMNS: dict[str, Any] = {
    "sequence": [
        {"type": "numeric", "name": "x", "normalizer": "zscore"},
        {"type": "bucketized", "source": {"type": "numeric", "name": "vector"}, "boundaries": {"quantiles": 3}},
        {
            "type": "one_hot",
            "source": {"type": "vocabulary", "name": "kind", "keys": ["view", "cart"], "oov_buckets": 0},
        },
        {"type": "embedding", "dimension": 3, "source": {"type": "vocabulary", "name": "tags", "max_keys": 2}},
    ],
    "context": [
        {"type": "numeric", "name": "age", "missing": "mean"},
        {
            "type": "one_hot",
            "source": {
                "type": "crossed",
                "buckets": 50,
                "sources": [
                    {"type": "hash_bucket", "name": "country", "buckets": 9},
                    {
                        "type": "bucketized",
                        "source": {"type": "numeric", "name": "age", "missing": "mean"},
                        "boundaries": {"quantiles": 2},
                    },
                ],
            },
        },
    ],
}
MODEL: dict[str, Any] = {
    "problem_type": "classification",
    "prediction_type": "multiple_value",
    "label": "y",
    "num_classes": 3,
    "num_units": [4],
    "columns": COLUMNS,
}


@pytest.fixture
def data(tmp_path: Path, make_table: Callable[..., pa.Table]) -> Path:
    """Two files of three row groups each."""
    directory = tmp_path / "data"
    directory.mkdir()
    for number in range(2):
        pq.write_table(make_table(rows=24, seed=number), directory / f"{number}.parquet", row_group_size=8)
    return directory


@pytest.fixture
def make_run(data: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """make_run(name, **model): a run over `data` without validation."""

    def make(name: str = "run", *, where: dict[str, Any] | None = None, **model: Any) -> RunConfig:
        return run_config(
            {
                "name": name,
                "output": str(tmp_path / "runs"),
                "data": {"train": str(data), "validation_fraction": 0, **(where or {})},
                "model": {**MODEL, **model},
                "train": {"steps": 2, "batch_sequences": 8},
                "tune": {"space": {"num_units": [2, 3]}, "metric": "train_loss"},
            },
            where="test",
        )

    return make


def run_command(*words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command line, in this process."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


class Scans:
    """Counts the row groups that are scanned."""

    def __init__(self) -> None:
        self.groups = 0

    def __call__(self, done: int, total: int) -> None:
        self.groups += 1
        assert done == self.groups <= total == 6


def touch(path: Path) -> None:
    """Another time of change, whatever the filesystem's clock."""
    os.utime(path, ns=(1, 1))


def rewrite(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, row_group_size=8)
    touch(path)


# One pass, merged in order ----------------------------------------------------------------------------------------


def parts_of(count: int) -> list[DataStats]:
    random = np.random.default_rng(0)
    x, w = Numeric(name="x"), Vocabulary(name="w")
    parts = []
    for number in range(count):
        values, words = random.normal(number, 10**number, 50), random.choice(list("abcdef"), 9).tolist()
        columns = {
            "numeric:x": stats_of(x, pa.array(values), quantiles=True),
            "vocabulary:w": stats_of(w, pa.array(words)),
        }
        parts.append(DataStats(columns, key_stats(pa.array(random.integers(0, 3, 9)), "y")))
    return parts


def bits(total: DataStats) -> str:
    described = {key: part.to_plain() | {"keys": sorted(part.keys.items())} for key, part in total.columns.items()}
    return json.dumps([described, sorted(total.labels.keys.items())])


@pytest.mark.parametrize("seed", range(5))
def test_fragments_that_come_in_any_order_merge_in_their_own(seed: int) -> None:
    parts, order = parts_of(12), OrderedMerge()
    for number in np.random.default_rng(seed).permutation(len(parts)):
        order.add(int(number), parts[number])
    assert bits(order.total) == bits(merged(parts))
    one_by_one = parts[0].columns["numeric:x"]
    for part in parts[1:]:
        one_by_one = one_by_one.merge(part.columns["numeric:x"])
    assert merged(parts).columns["numeric:x"].to_plain() == one_by_one.to_plain()
    assert bits(merged(parts[::-1])) != bits(merged(parts))  # so that the order is what makes the bits


def test_merging_changes_no_fragment() -> None:
    parts = parts_of(3)
    before = [bits(part) for part in parts]
    merged(parts)
    assert [bits(part) for part in parts] == before


def test_only_fragments_before_their_turn_are_held() -> None:
    parts, order = parts_of(4), OrderedMerge()
    for number in (0, 2, 3):
        order.add(number, parts[number])
    assert set(order._waiting) == {2, 3}
    order.add(1, parts[1])
    assert not order._waiting


def test_too_many_distinct_values_are_told_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "MOST_KEYS", 4)
    message = (
        "column 'w': holds more than 4 distinct values, too many to learn keys from; declare it as hash_bucket, or "
        "give the keys that matter in a vocabulary's `file`"
    )
    with pytest.raises(DataError) as raised:
        stats_of(Vocabulary(name="w"), pa.array(list("abcde")))
    assert str(raised.value) == message
    assert stats_of(Vocabulary(name="w", keys=("a", "q")), pa.array(list("abcde"))).keys == {"a": 1}
    halves = [
        DataStats({"vocabulary:w": stats_of(Vocabulary(name="w"), pa.array(list(half)))}) for half in ("abc", "cde")
    ]
    with pytest.raises(DataError) as raised:
        merged(halves)
    assert str(raised.value) == message


def test_declared_keys_of_another_type_count_nothing() -> None:
    assert key_stats(pa.array(["a"]), "w", among=(1, 2)).keys == {}


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("way", ["by tasks", "in this process"])
def test_whatever_scans_fits_what_one_loop_does_to_the_last_bit(
    make_run: Callable[..., RunConfig], data: Path, request: pytest.FixtureRequest, way: str
) -> None:
    if way == "by tasks":
        request.getfixturevalue("large")
    config = make_run()
    prepared = fitted_data(config)
    fragments = find_fragments(data, read_columns(config.model))
    columns, label = fit_columns(config.model, [scan_fragment(f, config.model, None, fit=True) for f in fragments])
    assert prepared.columns.model_dump_json() == columns.model_dump_json()
    assert prepared.label == label
    stored = load_fitted(config.directory)
    assert same(stored, prepared)
    assert lines_of(stored.report) == lines_of(prepared.report)


@pytest.mark.usefixtures("local_ray")
def test_vocabularies_and_boundaries_are_those_of_one_table(make_run: Callable[..., RunConfig], data: Path) -> None:
    config = make_run()
    prepared, columns = fitted_data(config), config.model.columns
    whole = FittedColumns.fit(columns, column_stats(pq.read_table(data), columns))
    assert prepared.columns.sources.keys() == whole.sources.keys()
    for key in ("vocabulary:kind", "vocabulary:tags", "numeric:vector"):
        assert prepared.columns.sources[key] == whole.sources[key]


# Stored once ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
def test_what_is_stored_is_not_scanned_again(make_run: Callable[..., RunConfig]) -> None:
    first, second = Scans(), Scans()
    prepared = fitted_data(make_run(), progress=first)
    again = fitted_data(make_run(num_units=[7, 7], cell_type="gru"), progress=second)  # no matter of the data's
    assert (first.groups, second.groups) == (6, 0)
    assert same(prepared, again)


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_uses_what_was_fitted(make_run: Callable[..., RunConfig]) -> None:
    config, scans, lines = make_run(), Scans(), list[str]()
    began = fitted_data(config)
    for resume in (False, True):
        assert same(prepare(config, resume=resume, on_scan=scans, say=lines.append), began)
    assert (scans.groups, lines) == (0, [])


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_training_uses_what_was_fitted_and_its_directory_keeps_it(make_run: Callable[..., RunConfig]) -> None:
    config, scans, lines = make_run(), Scans(), list[str]()
    fitted_data(config)
    result = train(config, on_scan=scans, say=lines.append)
    assert scans.groups == 0
    (line,) = lines  # and none on fitting
    assert line.startswith("memory of a worker: about ")
    assert load_bundle(result.bundle).columns == load_fitted(config.directory).columns
    check_fit(config)  # it holds a run of these data
    with pytest.raises(ConfigError) as raised:
        check_fit(make_run(num_classes=4))
    assert str(raised.value) == (
        f"{config.directory} holds a run that was trained on other data or columns: model.num_classes was 3, but is "
        f"4; choose another name=…"
    )


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("below", ["", "*.parquet"])
def test_data_that_moved_are_split_as_they_were(
    make_run: Callable[..., RunConfig], data: Path, tmp_path: Path, below: str
) -> None:
    moved = shutil.copytree(data, tmp_path / "elsewhere" / "copy") / below
    one, other = (
        ingest.fit_data(make_run(where={"train": str(path), "validation_fraction": 0.3})) for path in (data, moved)
    )
    assert one.train.selected is not None
    assert other.train.selected is not None
    np.testing.assert_array_equal(one.train.selected, other.train.selected)
    assert one.train.selected[:24].tolist() != one.train.selected[24:].tolist()  # of two files


@pytest.mark.usefixtures("local_ray")
def test_a_training_says_why_it_fits_columns(make_run: Callable[..., RunConfig], data: Path) -> None:
    class ToldError(Exception):
        """Ends a training as soon as it has spoken."""

    def say(line: str) -> None:
        raise ToldError(line)

    config = make_run()
    with pytest.raises(ToldError, match=r"^fitting the columns: none are stored$"):
        train(config, say=say)
    fitted_data(config)
    touch(data / "0.parquet")
    with pytest.raises(ToldError, match=rf"^fitting the columns again: {data}/0\.parquet has changed$"):
        train(config, say=say)


CHANGES: dict[str, tuple[Callable[[Path, pa.Table], None], str]] = {
    "a file that is touched": (lambda data, _: touch(data / "0.parquet"), "{data}/0.parquet has changed"),
    "a file with other rows": (lambda data, t: rewrite(data / "1.parquet", t), "{data}/1.parquet has changed"),
    "a file more": (lambda data, t: pq.write_table(t, data / "2.parquet"), "{data}/2.parquet is new"),
    "a file less": (lambda data, _: (data / "1.parquet").unlink(), "{data}/1.parquet is no longer there"),
}


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", CHANGES)
def test_changed_data_are_scanned_again(
    name: str, make_run: Callable[..., RunConfig], data: Path, make_table: Callable[..., pa.Table]
) -> None:
    change, told = CHANGES[name]
    config, lines = make_run(), list[str]()
    fitted_data(config)
    assert is_current(config)
    change(data, make_table(rows=24, seed=9))
    assert not is_current(config)
    found = fitted_data(config, say=lines.append)
    assert lines == ["fitting the columns again: " + told.format(data=data)]
    assert is_current(config)
    assert same(found, ingest.fit_data(config))


@pytest.mark.usefixtures("local_ray")
def test_changed_settings_are_fitted_again_and_named(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("view\ncart\n")
    file = {"type": "one_hot", "source": {"type": "vocabulary", "name": "kind", "file": str(tmp_path / "keys")}}
    x = {"type": "numeric", "name": "x"}
    first = make_run(columns={"sequence": [x, file]})
    fitted_data(first)
    assert is_current(make_run(columns={"sequence": [x, file]}, where={"test": "elsewhere"}))
    lines = list[str]()
    other = make_run(
        columns={"sequence": [x]}, where={"validation_fraction": 0.3, "key": "key"}, class_weights={"1": 2}
    )
    fitted_data(other, say=lines.append)
    assert "data.key was None, but is 'key'; data.validation_fraction was 0, but is 0.3" in lines[0].replace(
        "0.0,", "0,"
    )
    assert lines[0].endswith(" and 2 more")  # the columns, and the keys' file that is no longer read
    fitted_data(first)
    (tmp_path / "keys").write_text("cart\nview\n")
    touch(tmp_path / "keys")
    assert not is_current(first)
    kind = fitted_data(first).columns.sources["vocabulary:kind"]
    assert kind.keys == ("cart", "view")  # type: ignore[union-attr]


@pytest.mark.usefixtures("local_ray")
def test_a_scan_that_was_cut_short_is_not_taken_for_whole(
    make_run: Callable[..., RunConfig], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run()
    fitted_data(config)
    touch(data / "0.parquet")

    def killed(directory: str, prepared: FittedData) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit_cache, "save_fitted", killed)
        with pytest.raises(KeyboardInterrupt):
            fitted_data(config)
    assert not is_current(config)
    lines = list[str]()
    fitted_data(config, say=lines.append)
    assert lines == ["fitting the columns again: it is not known what the stored columns were fitted on"]


@pytest.mark.usefixtures("local_ray")
def test_a_resumed_run_goes_on_with_touched_data_and_refuses_changed_ones(
    make_run: Callable[..., RunConfig], data: Path
) -> None:
    config = make_run()
    began = fitted_data(config)
    touch(data / "0.parquet")
    assert same(fitted_data(config, resume=True), began)
    assert is_current(config)
    table = pq.read_table(data / "0.parquet")
    rewrite(data / "0.parquet", table.take(list(range(23, -1, -1))))
    before = (Path(config.directory) / "data" / "columns.json").read_bytes()
    with pytest.raises(ConfigError) as raised:
        fitted_data(config, resume=True)
    assert str(raised.value) == (
        f"{config.directory}: a resumed run goes on with the data it began with, but they have changed: "
        f"{data}/0.parquet has changed; restore them, or start a new run under another name"
    )
    assert (Path(config.directory) / "data" / "columns.json").read_bytes() == before


# The command ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
def test_the_command_shows_and_stores_what_it_has_fitted_and_scans_no_more(
    make_run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config, yaml, output = make_run(), tmp_path / "run.yaml", tmp_path / "fitted.json"
    yaml.write_text(dump_yaml(config))
    code, shown, noted = run_command("fit-columns", str(yaml), "--output", str(output))
    assert code == 0, noted
    assert "scanning row groups: 6 of 6" in noted
    lines = shown.splitlines()
    assert lines[0].startswith("columns fitted on 48 rows of ")
    assert lines[0].endswith(f" steps: {config.directory}/data")
    told = {line.strip().split("  ")[0]: line.strip().partition("  ")[2].strip() for line in lines[1:]}
    assert list(told) == [
        "vector (numeric)", "tags (vocabulary)", "kind (vocabulary)", "x (numeric)",
        "age_X_country (context, crossed)", "age (context, numeric)", "y (label, classification)",
    ]  # fmt: skip
    report = json.loads(output.read_text())
    assert is_current(config)
    prepared = load_fitted(config.directory)
    assert report["fitted"] == json.loads(prepared.columns.model_dump_json())["sources"]
    second, shown_again, noted_again = run_command("fit-columns", str(yaml))
    assert (second, shown_again) == (0, shown)
    assert "nothing is scanned" in noted_again
    assert "Ray" not in noted_again


@pytest.mark.usefixtures("local_ray")
def test_the_report_tells_what_the_data_hold(make_run: Callable[..., RunConfig], data: Path) -> None:
    prepared = fitted_data(make_run())
    table = pa.concat_tables(pq.read_table(file) for file in sorted(data.iterdir()))
    columns = {told["column"]: told for told in prepared.report["columns"]}
    x = np.concatenate(table["x"].to_pylist())
    assert columns["x"]["mean"] == pytest.approx([x.mean()])
    assert columns["x"]["deviation"] == pytest.approx([x.std()])
    assert (columns["x"]["low"], columns["x"]["high"]) == ([x.min()], [x.max()])
    kinds = np.array([kind for row in table["kind"].to_pylist() for kind in row])
    assert columns["kind"]["oov_share"] == pytest.approx(np.mean(~np.isin(kinds, ["view", "cart"])))
    tags = [tag for row in table["tags"].to_pylist() for step in row for tag in step]
    kept = prepared.columns.sources["vocabulary:tags"].keys  # type: ignore[union-attr]
    assert columns["tags"]["oov_share"] == pytest.approx(np.mean([tag not in kept for tag in tags]))
    assert columns["tags"]["frequent"] == [(key, pytest.approx(tags.count(key) / len(tags))) for key in kept]
    assert columns["age"]["missing"] == pytest.approx(table["age"].null_count / table.num_rows)
    labels = np.concatenate(table["y"].to_pylist())
    assert prepared.report["label"]["classes"] == [(c, pytest.approx(np.mean(labels == c))) for c in range(3)]


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("form", ["strings", "integers"])
def test_values_outside_a_vocabularys_file_are_counted(
    make_run: Callable[..., RunConfig], data: Path, tmp_path: Path, form: str
) -> None:
    keys = ["de", "at"] if form == "strings" else [7, 3]
    (tmp_path / "keys.txt").write_text("".join(f"{key}\n" for key in [*keys, 99 if form == "integers" else "xx"]))
    values = []
    for file in sorted(data.iterdir()):
        table = pq.read_table(file)
        own = [None if row == 5 else [*keys, 1 if form == "integers" else "fr"][row % 3] for row in range(24)]
        values += [value for value in own if value is not None]
        rewrite(file, table.set_column(table.column_names.index("country"), "country", pa.array(own)))
    source = {"type": "vocabulary", "name": "country", "file": str(tmp_path / "keys.txt")}
    columns = {"sequence": COLUMNS["sequence"][:1], "context": [{"type": "one_hot", "source": source}]}
    prepared = fitted_data(make_run(columns=columns))
    told = {told["column"]: told for told in prepared.report["columns"]}["country"]
    assert told["keys"] == 3
    assert told["oov_share"] == pytest.approx(np.mean([value not in keys for value in values]))
    frequent = sorted(keys, key=lambda key: (-values.count(key), key))
    assert told["frequent"] == [(key, pytest.approx(values.count(key) / len(values))) for key in frequent]


def test_lines_say_what_is_told() -> None:
    report = {
        "columns": [
            {"column": "a", "group": "sequence", "kind": "numeric", "entries": 8, "missing": 0.25, "mean": [1.5],
             "deviation": [0.5], "low": [1.0], "high": [2.0], "boundaries": {"3": [1.2, 1.8], "9": []}},
            {"column": "b", "group": "context", "kind": "numeric", "entries": 8, "missing": 0.0, "mean": [1.0, None],
             "deviation": [0.0, None], "low": [1.0, None], "high": [1.0, None], "boundaries": {}},
            {"column": "c", "group": "sequence", "kind": "numeric", "entries": 8, "missing": 1.0, "mean": [],
             "deviation": [], "low": [], "high": [], "boundaries": {}},
            {"column": "d", "group": "sequence", "kind": "vocabulary", "entries": 8, "values": 1000, "buckets": 4,
             "keys": 3, "oov_buckets": 1, "oov_share": 0.005, "frequent": [["x", 0.5], [7, 0.25]]},
            {"column": "e", "group": "sequence", "kind": "vocabulary", "entries": 8, "values": 9, "buckets": 2,
             "keys": 2, "oov_buckets": 0, "oov_share": None, "frequent": []},
            {"column": "f", "group": "sequence", "kind": "hash_bucket", "entries": 8, "values": 9, "buckets": 1000},
            {"column": "g_X_h", "group": "sequence", "kind": "crossed", "entries": 8, "buckets": 50,
             "boundaries": {"h": [0.5]}},
        ],
        "label": {"column": "y", "problem_type": "classification", "labels": 1200,
                  "classes": [["k", 0.5], ["l", 0.2], ["m", 0.1], ["n", 0.1], ["o", 0.06], ["p", 0.04]]},
    }  # fmt: skip
    assert lines_of(report) == {
        "a (numeric)": "mean 1.5, deviation 0.5, 1 … 2, 25 % missing; 3 quantiles at 1.2, 1.8; 9 quantiles: no edge, "
        "the values do not differ",
        "b (context, numeric)": "2 numbers a step, all in 1 … 1",
        "c (numeric)": "no value that is not missing",
        "d (vocabulary)": "3 keys, 1,000 values, 0.5 % unknown; most frequent: 'x' 50 %, 7 25 %",
        "e (vocabulary)": "2 keys, 9 values, unknown values were not counted",
        "f (hash bucket)": "1,000 ids for 9 values",
        "g_X_h (crossed)": "50 ids; intervals of h at 0.5",
        "y (label, classification)": "6 classes of 1,200 labels: 'k' 50 %, 'l' 20 %, 'm' 10 %, 'n' 10 %, 'o' 6 %; "
        "rarest: 'p' 4 %",
    }
    regression = {"column": "y", "problem_type": "linear_regression", "labels": 4, "missing": 0.0}
    label = {**regression, "mean": [2.0], "deviation": [1.0], "low": [0.0], "high": [4.0]}
    assert lines_of({"columns": [], "label": label}) == {"y (label, linear regression)": "mean 2, deviation 1, 0 … 4"}


@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
def test_numbers_to_predict_are_never_missing(
    tmp_path: Path, make_table: Callable[..., pa.Table], prediction: str
) -> None:
    pq.write_table(make_table("linear_regression", prediction, rows=30), tmp_path / "t.parquet")
    model = {
        "problem_type": "linear_regression",
        "prediction_type": prediction,
        "label": "y",
        "num_units": [2],
        "columns": {"sequence": [{"type": "numeric", "name": "x"}]},
    }
    run = run_config(
        {"output": str(tmp_path), "data": {"train": str(tmp_path), "validation_fraction": 0}, "model": model},
        where="run",
    )
    report = ingest.fit_data(run).report
    assert report["label"]["missing"] == 0
    assert "missing" not in lines_of(report)["y (label, linear regression)"]


def test_a_mistake_is_told_before_ray_starts(make_run: Callable[..., RunConfig], data: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "run.yaml"
    yaml.write_text(dump_yaml(make_run()))
    for file in data.iterdir():
        file.unlink()
    assert run_command("fit-columns", str(yaml)) == (
        2, "", f"dynamic-rnn: {data}: must hold at least one .parquet file, but holds none; check the path\n",
    )  # fmt: skip


def test_statistics_travel_bit_by_bit() -> None:
    for part in parts_of(2):
        for one in (*part.columns.values(), part.labels):
            again = ColumnStats.from_plain(json.loads(json.dumps(one.to_plain())))
            assert again.to_plain() == one.to_plain()
