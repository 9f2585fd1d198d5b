"""`inspect` on real files through real Ray: the report against pandas, what is suspicious, the proposed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.batches.plan import Plan
from model.errors import ConfigError, DataError
from pipelines.config import RunConfig, run_config
from pipelines.inspect.estimates import unsorted_padding
from pipelines.inspect.html import page
from pipelines.inspect.report import report
from pipelines.inspect.run import inspect_data

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = 400


def lists(lengths: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, *np.cumsum(lengths)], pa.int32()), values)


def write(directory: Path, table: pa.Table, group: int = 100) -> Path:
    """Two files, of several row groups each, and one without rows."""
    directory.mkdir(exist_ok=True)
    half = table.num_rows * 5 // 8
    pq.write_table(table.slice(0, half), directory / "a.parquet", row_group_size=group)
    pq.write_table(table.slice(half), directory / "b ü.parquet", row_group_size=group)
    pq.write_table(table.slice(0, 0), directory / "empty.parquet")
    return directory


@pytest.fixture(scope="module")
def suspicious() -> pa.Table:
    """A table with everything that is suspicious in a table with one label a row."""
    random = np.random.default_rng(0)
    lengths = random.integers(0, 30, ROWS)
    lengths[7] = 900
    steps, last = int(lengths.sum()), np.cumsum(lengths)[lengths > 0] - 1
    x = random.normal(size=steps)
    x[5], x[40], x[60] = np.nan, np.inf, 1e300
    shorter = lengths.copy()
    shorter[-1] -= 1
    y = random.integers(0, 3, ROWS)
    leak = np.zeros(steps)
    leak[last] = y[lengths > 0]
    vector = np.stack([random.normal(size=ROWS), np.ones(ROWS)], 1).ravel()
    words = ["buy", "view", "日本", "<script>alert(1)</script>"]
    return pa.table(
        {
            "user_id": [f"u{row % 300}" for row in range(ROWS)],
            "x": lists(lengths, pa.array(x)),
            "shorter": lists(shorter, pa.array(random.normal(size=shorter.sum()))),
            "constant": lists(lengths, pa.array(np.ones(steps))),
            "gaps": lists(lengths, pa.array(random.normal(size=steps), mask=random.random(steps) < 0.1)),
            "kind": lists(lengths, pa.array(random.choice(words, steps).tolist())),
            "leak_last": lists(lengths, pa.array(leak)),
            "leak_copy": y,
            "leak_scaled": 3.0 - 2.5 * y + random.normal(0, 1e-7, ROWS),
            "leak_code": [f"c{value}{'xy'[row % 2]}" for row, value in enumerate(y)],
            "session": [f"{row}-{random.random()}" for row in range(ROWS)],
            "when": lists(lengths, pa.array(random.integers(1_600_000_000_000, 1_700_000_000_000, steps))),
            "thing": [{"a": 1}] * ROWS,
            "nothing": pa.nulls(ROWS),
            "pair": pa.FixedSizeListArray.from_arrays(pa.array(vector), 2),
            "interests": pa.array([random.choice(["p", "q"], count).tolist() for count in random.integers(0, 4, ROWS)]),
            "label": y,
        }
    )


@pytest.fixture(scope="module")
def inspected(suspicious: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report(inspect_data(str(write(tmp_path_factory.mktemp("data") / "rows", suspicious))))


def found(told: dict[str, Any]) -> dict[tuple[str, str | None], dict[str, Any]]:
    """The findings by code and column."""
    return {(finding["code"], finding["column"]): finding for finding in told["findings"]}


def column(told: dict[str, Any], name: str) -> dict[str, Any]:
    [each] = [each for each in told["columns"] if each["name"] == name]
    return each


# The report -----------------------------------------------------------------------------------------------------


def test_the_report_agrees_with_pandas(suspicious: pa.Table, inspected: dict[str, Any]) -> None:
    frame = suspicious.select(["x", "kind", "session", "label"]).to_pandas()
    lengths = frame["x"].str.len()
    shares = {"min": 0, "1%": 0.01, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99}
    assert inspected["rows"] == ROWS
    assert (inspected["files"], inspected["row_groups"]) == (2, 5)
    told = inspected["lengths"]
    assert (told["column"], told["steps"], told["empty"]) == ("x", lengths.sum(), (lengths == 0).sum())
    expected = {name: lengths.quantile(share, "lower") for name, share in shares.items()}
    assert told["quantiles"] == pytest.approx({**expected, "max": 900}, abs=1)
    assert told["mean"] == pytest.approx(lengths.mean())
    drawn = told["histogram"]  # but for the one row of 900 steps
    assert (sum(drawn["counts"]), drawn["below"], drawn["above"]) == (ROWS - 1, 0, 1)
    assert drawn["edges"][-1] < 40
    kinds = frame["kind"].explode().dropna().value_counts()
    assert column(inspected, "kind")["distinct"] == 4
    listed = {item["value"]: item["count"] for item in column(inspected, "kind")["top"]["values"]}
    assert listed == kinds.to_dict()
    classes = {item["value"]: item["count"] for item in inspected["classes"]["top"]}
    assert classes == frame["label"].value_counts().to_dict()
    x = frame["x"].explode().dropna().astype(float)
    finite = x[np.isfinite(x)]
    numbers = column(inspected, "x")["numbers"]
    assert numbers["count"] == len(finite)
    assert numbers["means"][0] == pytest.approx(finite[finite < 1e38].mean())
    assert numbers["quantiles"]["median"] == pytest.approx(np.quantile(finite, 0.5, method="inverted_cdf"))
    assert sum(numbers["histogram"]["counts"]) + numbers["histogram"]["above"] + numbers["histogram"]["below"] == len(
        finite
    )


def test_each_column_has_its_use(inspected: dict[str, Any]) -> None:
    uses = {each["name"]: (each["role"], each["reads"]) for each in inspected["columns"]}
    assert uses == {
        "user_id": ("key", None),
        "x": ("sequence", "numeric"),
        "shorter": ("sequence", "numeric"),
        "constant": ("sequence", "numeric"),
        "gaps": ("sequence", "numeric"),
        "kind": ("sequence", "categorical"),
        "leak_last": ("sequence", "numeric"),
        "leak_copy": ("context", "numeric"),
        "leak_scaled": ("context", "numeric"),
        "leak_code": ("context", "categorical"),
        "session": ("unused", "categorical"),
        "when": ("sequence", "numeric"),
        "thing.a": ("context", "numeric"),
        "nothing": ("unused", None),
        "pair": ("context", "numeric"),
        "interests": ("context", "categorical"),
        "label": ("label", None),
    }
    assert inspected["label"] == {"column": "label", "chosen": "guessed from its name"}


def test_everything_suspicious_is_told_and_nothing_else(inspected: dict[str, Any]) -> None:
    told = found(inspected)
    empty = inspected["lengths"]["empty"]
    gaps = column(inspected, "gaps")["missing"]
    file = inspected["data"]
    assert {key: finding["text"] for key, finding in told.items()} == {
        ("lengths-disagree", "shorter"): "in 1 row its list is not as long as that of 'x': all sequence columns of a "
        "row must be equally long",
        ("nan", "x"): "holds NaN once: training refuses such rows unless the column declares `nan_is_missing: true`, "
        "as the proposal does",
        ("infinite", "x"): "holds an infinite number once: training refuses such rows; write null, or a number",
        ("beyond-float32", "x"): "holds a number beyond float32's range once: training refuses such rows; scale the "
        "column",
        ("constant", "thing.a"): "has one value only, 1: it tells a model nothing",
        ("empty-sequences", None): f"{empty} of 400 rows have no step",
        (
            "long-tail",
            None,
        ): "the longest sequence has 900 steps, but 99 % have at most 29: a batch needs the memory of "
        "its longest row; cut long ones (`dynamic-rnn prepare --max-length`)",
        ("duplicate-keys", "user_id"): "100 of 400 rows repeat a key that another row has (300 keys): name it as "
        "data.key, so that no key stands in training and validation alike, and give pieces of one sequence a "
        "'sequence_index'",
        ("constant", "constant"): "has one value only, 1.0: it tells a model nothing",
        ("near-unique", "session"): "almost every value stands once (400 of 400): an id? A model cannot learn from it",
        ("time-as-number", "when"): "looks like milliseconds since 1970: time since the step before tells more "
        "(`dynamic-rnn prepare --time-delta`)",
        ("no-values", "nothing"): "holds nothing but nulls and empty lists",
        ("constant-parts", "pair"): "1 of the 2 numbers a step never changes (number 1, from 0)",
        ("label-copy", "leak_last"): "at its last step equals the label always",
        ("label-copy", "leak_copy"): "equals the label always",
        ("label-correlated", "leak_scaled"): "is the label on another scale: their correlation is -1.000000",
        ("label-decided", "leak_code"): "decides the label: each of its values goes with one label always",
        ("missing", "gaps"): f"holds {gaps} nulls: declare `missing: mean` and `indicator: true`",
    }
    assert told["lengths-disagree", "shorter"]["places"] == [{"file": f"{file}/b ü.parquet", "row": 149}]
    assert [finding["severity"] for finding in inspected["findings"]] == ["error"] * 3 + ["warning"] * 14 + ["note"]


def test_harmless_data_have_no_finding(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(3, 9, 200)
    steps = int(lengths.sum())
    table = pa.table(
        {
            "x": lists(lengths, pa.array(random.normal(size=steps))),
            "kind": lists(lengths, pa.array(random.choice(["a", "b", "c"], steps).tolist())),
            "country": random.choice(["at", "de"], 200),
            "label": random.choice(["no", "yes"], 200),
        }
    )
    told = report(inspect_data(str(write(tmp_path / "data", table))))
    assert told["findings"] == []


def per_step(**columns: Any) -> pa.Table:
    """A table of 200 rows: `x`, and columns computed from its flat values and whether a step is its row's last."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 9, 200)
    x = random.integers(0, 50, int(lengths.sum()))
    made = {name: lists(lengths, pa.array(make(x, lengths))) for name, make in columns.items()}
    return pa.table({"x": lists(lengths, pa.array(x)), **made})


@pytest.mark.parametrize(
    ("make", "code", "text"),
    [
        (lambda x, _: np.roll(x, -1), "next-step", "the label is this column one step later: next-step prediction"),
        (
            lambda x, _: np.roll(x, 1),
            "label-delayed",
            "the label is this column one step before: a model needs only to remember it",
        ),
        (lambda x, _: x, "label-copy", "equals the label always"),
        (lambda x, _: -x * 0.5 + 1e-9, "label-correlated", "is the label on another scale: their correlation is "),
        (lambda x, _: (x * 7919) % 3, "label-decided", "decides the label: each of its values goes with one label "),
    ],
)
def test_a_label_a_step_that_the_input_gives_away(make: Any, code: str, text: str, tmp_path: Path) -> None:
    told = report(inspect_data(str(write(tmp_path / "data", per_step(target=make)))))
    finding = found(told)[code, "x"]
    assert finding["text"].startswith(text)
    assert finding["severity"] == ("note" if code == "next-step" else "warning")
    assert (told["proposal"]["yaml"] is None) == (code != "next-step")


def test_class_balance_and_null_labels(tmp_path: Path) -> None:
    labels = ["common"] * 390 + ["rare"] * 9 + [None]
    table = pa.table({"x": [[1.0, 2.0], [3.0]] * 200, "label": labels})
    told = report(inspect_data(str(write(tmp_path / "data", table))))
    texts = {code: finding["text"] for (code, _), finding in found(told).items()}
    assert texts["rare-classes"] == "1 of 2 classes stand fewer than 10 times: 'rare'"
    assert texts["dominant-class"] == (
        "'common' is 97.7% of the labels: accuracy says little; weigh the classes (class_weights)"
    )
    assert texts["label-missing"] == (
        "1 label is null: training refuses such rows; fill them in, or leave them out (`data.on_bad_rows: skip`)"
    )
    assert told["classes"]["labels"] == 399


def test_types_that_differ_between_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [[1.0]], "k": ["a"], "only": [1], "label": [0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": pa.array([[1]]), "k": [7], "label": [1]}), tmp_path / "b.parquet")
    texts = {key: finding["text"] for key, finding in found(report(inspect_data(str(tmp_path)))).items()}
    assert texts["types-differ", "x"] == (
        "has different types in different files: list<double> (1 row), list<int64> (1 row)"
    )
    assert texts["types-disagree", "k"] == "is string and int64 in different files; write them with one type"
    assert texts["absent-column", "only"] == "is missing in files with 1 of 2 rows"


def test_columns_that_stand_in_the_paths_are_inspected_like_others(tmp_path: Path) -> None:
    for country in ("at", "de"):
        (tmp_path / f"country={country}").mkdir()
        table = pa.table({"x": [[1.0], [2.0, 3.0]], "label": ["a", "b"]})
        pq.write_table(table, tmp_path / f"country={country}" / "part.parquet")
    told = column(report(inspect_data(str(tmp_path))), "country")
    assert (told["role"], told["distinct"], told["types"]) == ("context", 2, {"string": 4})


def test_pieces_of_a_key_need_an_index_of_their_own(tmp_path: Path) -> None:
    table = pa.table(
        {"key": ["a", "a", "b", "b"], "sequence_index": [0, 1, 0, 0], "x": [[1.0]] * 4, "label": [0, 1, 0, 1]}
    )
    told = report(inspect_data(str(write(tmp_path / "data", table))))
    assert told["key"]["duplicate_rows"] == 1
    assert found(told)["duplicate-keys", "key"]["text"] == (
        "1 of 4 rows repeat a key that another row has: 'key' and 'sequence_index' together must name one row; "
        "batch prediction refuses others"
    )


def test_an_event_table_is_told_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "the events.parquet"
    pq.write_table(pa.table({"user_id": ["a", "a"], "ts": [1, 2], "value": [1.0, 2.0]}), path)
    told = report(inspect_data(str(path)))
    assert told["lengths"] is None
    assert told["estimates"] is None
    assert told["proposal"]["reason"] == found(told)["event-table", None]["text"]
    assert told["proposal"]["reason"] == (
        "no column holds lists: if each row is one event, make sequences of them with "
        f"`dynamic-rnn prepare '{path}' sequences --key user_id --time ts`"
    )


def test_the_same_data_give_the_same_bytes_here_and_on_any_number_of_workers(
    suspicious: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.data

    data = str(write(tmp_path / "data", suspicious, group=50))
    limits = ray.data.DataContext.get_current().execution_options
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.tasks.map.ray_is_running", lambda: False)  # by this process
        told = report(inspect_data(data))
    pages = [(json.dumps(told, allow_nan=False), page(told))]
    try:
        for workers in (1, 3):
            limits.resource_limits = limits.resource_limits.copy(cpu=workers)
            told = report(inspect_data(data))
            pages.append((json.dumps(told, allow_nan=False), page(told)))
    finally:
        limits.resource_limits = limits.resource_limits.copy(cpu=float("inf"))
    assert pages[0] == pages[1] == pages[2]


def test_names_that_are_no_columns_and_data_without_rows(tmp_path: Path) -> None:
    table = pa.table({"x": [[1.0]], "label": [1]})
    pq.write_table(table.slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="must hold at least one row, but all its files are empty"):
        inspect_data(str(tmp_path))
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(ConfigError) as told:
        inspect_data(str(tmp_path), label="lable")
    assert str(told.value) == (
        "--label must name a column, but 'lable' is none; did you mean label?; the columns are x, label"
    )
    with pytest.raises(ConfigError, match="--key must name a column with one value a row, but 'x' holds lists"):
        inspect_data(str(tmp_path), key="x")


# A run ----------------------------------------------------------------------------------------------------------


def run_over(data: Path, **model: Any) -> RunConfig:
    settings = {
        "problem_type": "classification",
        "prediction_type": "single_value",
        "label": "label",
        "num_classes": 3,
        "num_units": 4,
        "columns": {"sequence": [{"type": "numeric", "name": "x"}, {"type": "numeric", "name": "shorter"}]},
        **model,
    }
    return run_config(
        {"data": {"train": str(data), "key": "user_id"}, "model": settings, "train": {"batch_sequences": 16}},
        where="run.yaml",
    )


def test_a_run_has_all_its_bad_rows_counted_with_examples(suspicious: pa.Table, tmp_path: Path) -> None:
    labels = suspicious["label"].to_numpy().copy()
    labels[[9, 250, 300]] = 7
    table = suspicious.set_column(suspicious.column_names.index("label"), "label", pa.array(labels))
    data = write(tmp_path / "data", table)
    told = report(inspect_data(str(data), config=run_over(data)))
    refused = [finding for finding in told["findings"] if finding["code"] == "refused-rows"]
    ends = np.cumsum([len(row) for row in suspicious["x"].to_pylist()])
    in_x = [("x", "a.parquet", int(np.searchsorted(ends, step, side="right"))) for step in (5, 40, 60)]
    assert sorted(
        (finding["column"], Path(place["file"]).name, place["row"])
        for finding in refused
        for place in finding["places"]
    ) == sorted(
        [
            *in_x,
            ("x", "b ü.parquet", 149),
            ("label", "a.parquet", 9),
            ("label", "b ü.parquet", 0),
            ("label", "b ü.parquet", 50),
        ]
    )
    assert [finding["text"] for finding in refused if finding["column"] == "label"] == [
        "training refuses 3 of 400 rows: must be one of the 3 classes (0, 1, 2), but is 7"
    ]
    assert {each["name"] for each in told["columns"]} == {"x", "shorter", "label", "user_id"}  # what the run reads
    assert told["estimates"]["batch_sequences"] == 16


def test_a_runs_filter_decides_which_rows_are_inspected(suspicious: pa.Table, tmp_path: Path) -> None:
    data = write(tmp_path / "data", suspicious)
    run = run_over(data, columns={"sequence": [{"type": "numeric", "name": "gaps", "missing": 0.0}]})
    filtered = run.model_copy(update={"data": run.data.model_copy(update={"filter": "leak_copy == 1"})})
    told = report(inspect_data(str(data), config=filtered))
    kept = int((suspicious["leak_copy"].to_numpy() == 1).sum())
    assert told["rows"] == kept
    assert sum(told["lengths"]["histogram"]["counts"]) == kept
    assert [finding["code"] for finding in told["findings"] if finding["severity"] == "error"] == ["one-class"]


def test_the_estimates_are_those_of_the_plan(suspicious: pa.Table, tmp_path: Path) -> None:
    data = write(tmp_path / "data", suspicious)
    run = run_over(data)
    inspection = inspect_data(str(data), config=run)
    survey, told = inspection.survey, inspection.estimates
    assert told is not None
    assert survey.lengths is not None
    plan = Plan(survey.index, 16, seed=run.train.seed)
    order = np.concatenate([piece.rows for piece in plan.pieces(0, 1, 0, plan.steps_per_epoch)])
    batches = [survey.lengths[order[start : start + 16]] for start in range(0, ROWS, 16)]
    padded = sum(len(batch) * int(batch.max()) for batch in batches)
    assert told.steps_per_epoch == len(batches) == 25
    assert told.padding == pytest.approx(padded / survey.lengths.sum())
    assert told.longest_batch_steps == max(len(batch) * int(batch.max()) for batch in batches)
    assert told.padding_unsorted > told.padding
    assert told.step_bytes == 4 * (2 + 2)


def test_unsorted_padding_of_equal_lengths_is_none() -> None:
    assert unsorted_padding(np.full(10, 7), 4, 0) == 1.0
    assert unsorted_padding(np.array([1, 3]), 2, 0) == 1.5
    assert unsorted_padding(np.zeros(3, int), 2, 0) == 1.0
