"""`inspect` on events and on what `prepare` makes of them: what the future tells, parts of a split, keys, ids, ties.

The data are small, so no Ray is started.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.settings.yaml_text import parse_yaml
from model.tables.prepared import Prepared, PreparedLabel, with_prepared
from pipelines.config import RunConfig, run_config
from pipelines.ingest.scan import fit_data
from pipelines.inspect.column_profile import profile_column
from pipelines.inspect.findings import Finding
from pipelines.inspect.patterns import Pattern, Ties, ties_of
from pipelines.inspect.proposal import declaration
from pipelines.inspect.roles import AT_END, Role, reading_of
from pipelines.inspect.run import Inspection, inspect_data

ROWS = 240
Lists = list[list[Any]]
FUTURE = f"is {AT_END}; it is left out"


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def write(path: Path, columns: dict[str, Any], prepared: Prepared | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table if prepared is None else table.cast(with_prepared(table.schema, prepared)), path)


def found(inspection: Inspection, *codes: str) -> list[tuple[str, str | None, str]]:
    """(severity, column, text) of the findings with these codes."""
    told: tuple[Finding, ...] = inspection.findings
    return [(each.severity, each.column, each.text) for each in told if each.code in codes]


def proposed(inspection: Inspection) -> RunConfig:
    """The proposed run, once its text has been read and its data have been fitted."""
    assert inspection.proposal.text is not None, inspection.proposal.reason
    run = run_config(parse_yaml(inspection.proposal.text, where="proposal"), where="proposal")
    assert fit_data(run).train.rows > 0
    return run


def inputs(run: RunConfig) -> set[str]:
    return {*run.model.columns.data_columns("sequence"), *run.model.columns.data_columns("context")}


def sequences(random: np.random.Generator, rows: int = ROWS) -> dict[str, Any]:
    """As `prepare --key player --time ts --max-length … --label page --label-shift 1` writes them."""
    pages: Lists = [random.choice(["home", "shop", "bye"], random.integers(2, 7)).tolist() for _ in range(rows)]
    first = random.integers(0, 1000, rows)
    return {
        "player": [row // 4 for row in range(rows)],
        "sequence_index": [row % 4 for row in range(rows)],
        "ts_first": first,
        "ts_last": first + np.array([5 * len(row) for row in pages]),
        "page": pages,
        "page_next": [[*row[1:], "bye"] for row in pages],
    }


KNOWN = Prepared(
    key=("player",), index="sequence_index", time=("ts",), known_at_end=("ts_last", "rank"),
    label=PreparedLabel(column="page_next", source="page", shift=1),
)  # fmt: skip


# The future as a feature ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [KNOWN, None])
def test_what_only_the_last_event_tells_is_no_input_of_a_next_step_model(
    prepared: Prepared | None, random: np.random.Generator, tmp_path: Path
) -> None:
    columns = {**sequences(random), "rank": random.integers(0, 9, ROWS)}
    write(tmp_path / "a.parquet", columns, prepared)
    inspection = inspect_data(str(tmp_path))
    known = ["ts_last"] if prepared is None else ["ts_last", "rank"]
    assert found(inspection, "known-at-end") == [("note", name, FUTURE) for name in known]
    assert inputs(proposed(inspection)) == {"page", "rank"} - {*known}
    assert f"    # left out: ts_last: {AT_END}\n" in (inspection.proposal.text or "")


def test_a_label_of_the_whole_sequence_may_see_how_it_ends(random: np.random.Generator, tmp_path: Path) -> None:
    columns = {**sequences(random), "rank": random.integers(0, 9, ROWS), "label": random.integers(0, 2, ROWS)}
    del columns["page_next"]
    write(
        tmp_path / "a.parquet",
        columns,
        KNOWN.model_copy(update={"label": PreparedLabel(column="label", source="label")}),
    )
    inspection = inspect_data(str(tmp_path))
    assert found(inspection, "known-at-end") == []
    assert inputs(proposed(inspection)) == {"page", "rank"}


def test_a_column_in_line_with_how_a_sequence_ends_is_the_future_too(
    random: np.random.Generator, tmp_path: Path
) -> None:
    columns = sequences(random)
    lengths = np.array([len(row) for row in columns["page"]])
    columns |= {
        "pages": lengths,
        "minutes": (columns["ts_last"] - columns["ts_first"]) / 60,
        "closed_at": columns["ts_last"] + random.integers(0, 3, ROWS),
        "amount": random.integers(5000, 9000, ROWS),
    }
    write(tmp_path / "a.parquet", columns)
    inspection = inspect_data(str(tmp_path))
    future = ["ts_last", "pages", "minutes", "closed_at"]
    assert found(inspection, "known-at-end") == [("note", name, FUTURE) for name in future]
    assert inputs(proposed(inspection)) == {"page", "amount"}


def test_a_run_that_reads_the_future_is_told_so(random: np.random.Generator, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**sequences(random), "rank": random.integers(0, 9, ROWS)}, KNOWN)
    run = proposed(inspect_data(str(tmp_path)))
    rank = {"context": [{"type": "numeric", "name": "rank"}], **run.model.columns.model_dump(include={"sequence"})}
    reads = run.model.model_validate({**run.model.model_dump(), "columns": rank})
    inspection = inspect_data(str(tmp_path), config=run.model_copy(update={"model": reads}))
    text = f"is {AT_END}; take it out of the run's columns"
    assert found(inspection, "known-at-end") == [("warning", "rank", text)]


# Splits -----------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_split_are_proposed_each_and_the_training_part_is_inspected(
    random: np.random.Generator, tmp_path: Path
) -> None:
    for rows, part in ((200, "train"), (30, "validation"), (20, "test")):
        columns = sequences(random, rows)
        columns["page_next"][0] = [*columns["page_next"][0][:-1], part]  # a class that this part alone has
        write(tmp_path / "seq" / part / "a.parquet", columns, KNOWN.model_copy(update={"split": part}))
    inspection = inspect_data(str(tmp_path / "seq"))
    seq = str(tmp_path / "seq")
    assert inspection.survey.rows == 200
    assert found(inspection, "split-parts") == [
        (
            "note",
            None,
            f"{seq} holds the parts of a split, train and validation and test: the training part is inspected, a run "
            "names each",
        )
    ]
    run = proposed(inspection)
    assert (run.name, run.data.train, run.data.validation, run.data.test) == (
        "seq", f"{seq}/train", f"{seq}/validation", f"{seq}/test",
    )  # fmt: skip
    assert run.model.classes == ("bye", "home", "shop", "train", "validation")
    assert "  # 1 of them in the validation part alone\n" in (inspection.proposal.text or "")
    by_glob = proposed(inspect_data(str(tmp_path / "seq" / "*" / "*.parquet")))
    assert by_glob.data == run.data


def test_parts_of_a_split_that_lie_elsewhere_are_told_to_be_mixed(random: np.random.Generator, tmp_path: Path) -> None:
    for name, part in (("a", "train"), ("b", "validation")):
        write(tmp_path / f"{name}.parquet", sequences(random), KNOWN.model_copy(update={"split": part}))
    assert found(inspect_data(str(tmp_path)), "split-parts") == [
        (
            "warning",
            None,
            "parts of a split are read as one, so that a model would train on what validates or tests it: name the "
            "directory that holds all parts, or the training part alone",
        )
    ]


# Keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [KNOWN, None])
def test_the_key_is_that_of_prepare_whatever_its_name(
    prepared: Prepared | None, random: np.random.Generator, tmp_path: Path
) -> None:
    write(tmp_path / "a.parquet", sequences(random), prepared)
    assert proposed(inspect_data(str(tmp_path))).data.key == "player"


@pytest.mark.parametrize(
    ("shuffled", "why"),
    [
        (False, "its values repeat, each in one run of rows"),
        (True, "'home', 'label' never changes within one of its values"),
    ],
)
def test_a_column_that_looks_like_a_key_is_told_and_splits(
    shuffled: bool, why: str, random: np.random.Generator, tmp_path: Path
) -> None:
    owner = np.arange(ROWS) // 4
    order = random.permutation(ROWS) if shuffled else np.arange(ROWS)
    columns = {
        "owner": owner,
        "home": np.array(["at", "de", "fr"])[owner % 3],
        "x": np.array([random.normal(size=3) for _ in range(ROWS)]),
        "label": random.integers(0, 2, ROWS // 4)[owner],
    }
    write(tmp_path / "a.parquet", {name: [each[row].tolist() for row in order] for name, each in columns.items()})
    inspection = inspect_data(str(tmp_path))
    assert found(inspection, "key-like") == [
        (
            "warning",
            "owner",
            f"seems to name whose rows these are ({why}): the proposal splits by it (data.key), so that no entity "
            "trains and validates; name another with --key, or remove data.key",
        )
    ]
    run = proposed(inspection)
    assert (run.data.key, inputs(run)) == ("owner", {"x", "home"})


def test_values_of_their_own_rows_are_no_key(random: np.random.Generator, tmp_path: Path) -> None:
    x = [random.normal(size=3).tolist() for _ in range(ROWS)]
    write(tmp_path / "a.parquet", {"age": random.integers(18, 80, ROWS), "x": x, "label": random.integers(0, 2, ROWS)})
    inspection = inspect_data(str(tmp_path))
    assert found(inspection, "key-like") == []
    assert proposed(inspection).data.key is None


def test_a_few_keys_validate_by_a_share_that_holds_one_of_them(random: np.random.Generator, tmp_path: Path) -> None:
    for keys in (1, 4):
        x = [random.normal(size=3).tolist() for _ in range(ROWS)]
        columns = {"machine": np.arange(ROWS) % keys, "x": x, "label": random.integers(0, 2, ROWS)}
        write(tmp_path / str(keys) / "a.parquet", columns)
    run = proposed(inspect_data(str(tmp_path / "1")))
    assert (run.data.validation_fraction, run.data.key) == (0, None)
    run = proposed(inspect_data(str(tmp_path / "4")))
    assert run.data.validation_fraction > 0.1
    fitted = fit_data(run)
    assert fitted.validation is not None
    assert fitted.train.rows + fitted.validation.rows == ROWS


# Ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["item_id", "itemId", "sku", "product", "page code"])
def test_whole_numbers_called_like_ids_are_categories_and_their_next_ones_classes(
    name: str, random: np.random.Generator, tmp_path: Path
) -> None:
    ids = random.permutation(1_000_000)[:1500]
    rows: Lists = [random.choice(ids, 20).tolist() for _ in range(200)]
    write(tmp_path / "a.parquet", {name: rows, f"{name}_next": [[*row[1:], row[0]] for row in rows]})
    inspection = inspect_data(str(tmp_path))
    run = proposed(inspection)
    assert run.model.problem_type.value == "classification"
    assert run.model.num_classes == "auto"
    assert [column.type for column in run.model.columns.sequence] == ["embedding"]


def whole(make: Callable[[np.random.Generator], np.ndarray]) -> tuple[Any, Pattern]:
    """The profile and pattern of 200 lists of whole numbers of no name."""
    from pipelines.inspect.patterns import Ends, pattern_of

    random = np.random.default_rng(0)
    array = pa.array([make(random).tolist() for _ in range(200)])
    profile, coded = profile_column(array, "n", "", np.arange(len(array)))
    return profile, pattern_of(array, "n", profile, coded, Ends())


CODES = np.random.default_rng(1).permutation(100_000)[:300]


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (lambda random: random.choice(CODES, 30), "categorical"),
        (lambda random: random.integers(0, 300, 30), "categorical"),
        (lambda random: 500 + np.cumsum(random.integers(-3, 4, 30)), "numeric"),  # measurements flow
        (lambda random: (random.lognormal(3, 1, 30) * 10).astype(int), "numeric"),  # amounts crowd
        (lambda random: random.poisson(4, 30), "numeric"),
    ],
)
def test_whole_numbers_of_no_name_are_categories_where_they_are_even_and_without_order(
    make: Callable[[np.random.Generator], np.ndarray], reads: str
) -> None:
    assert reading_of("n", *whole(make)) == reads


def test_whole_numbers_that_may_be_ids_are_told(random: np.random.Generator, tmp_path: Path) -> None:
    prices = np.unique((random.lognormal(4, 1, 200) * 100).astype(int))
    rows: Lists = [random.choice(prices, 20).tolist() for _ in range(ROWS)]
    write(tmp_path / "a.parquet", {"cents": rows, "cents_next": [[*row[1:], row[0]] for row in rows]})
    inspection = inspect_data(str(tmp_path))
    told = "holds whole numbers with gaps and without order, which are "
    assert found(inspection, "ids-as-numbers") == [
        (
            "warning",
            "cents",
            f"{told}read as magnitudes: if they are ids, read them as a vocabulary (`type: embedding`)",
        ),
        (
            "warning",
            "cents_next",
            f"{told}predicted as numbers: if they are ids, set model.problem_type: classification, and read their "
            "column as a vocabulary",
        ),
    ]
    assert proposed(inspection).model.problem_type.value == "linear_regression"


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([0.0, 1.0] * 120),
        pa.array([Decimal(0), Decimal(1)] * 120, pa.decimal128(38, 0)),
        pa.array([0, 1] * 120),
    ],
)
def test_whole_numbers_of_any_type_are_classes(labels: pa.Array, random: np.random.Generator, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [random.normal(size=3).tolist() for _ in range(ROWS)], "label": labels})
    inspection = inspect_data(str(tmp_path))
    assert inspection.proposal.config is not None
    assert inspection.proposal.config.model.problem_type.value == "classification"
    assert inspection.proposal.config.model.num_classes == 2


# What cannot be learned from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [[5.5] * ROWS, [7] * ROWS, [[1.5, 1.5, 1.5]] * ROWS])
def test_a_constant_label_is_told_whatever_it_is(label: Any, random: np.random.Generator, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [random.normal(size=3).tolist() for _ in range(ROWS)], "label": label})
    inspection = inspect_data(str(tmp_path))
    (told,) = found(inspection, "constant-label", "one-class")
    assert told[:2] == ("error", "label")
    what = "class" if label[0] == 7 else "value"
    assert inspection.proposal.reason == (
        f"the label 'label' has one {what} only: there is nothing to learn; name another with --label"
    )


def test_nan_of_an_input_is_declared_to_be_missing(tmp_path: Path) -> None:
    array = pa.array([[1.0, float("nan")], [None, 2.0]])
    profile, _ = profile_column(array, "x", "", np.arange(2))
    assert declaration("x", profile, Role("sequence", "numeric")) == (
        {
            "type": "numeric",
            "name": "x",
            "normalizer": "zscore",
            "missing": "mean",
            "indicator": True,
            "nan_is_missing": True,
        },
        "1 nulls and 1 NaN become the mean, and an indicator says so",
    )
    write(tmp_path / "a.parquet", {"x": [[1.0, float("nan"), 2.0]] * 64, "y": [0, 1] * 32})
    assert found(inspect_data(str(tmp_path), label="y"), "nan") == [
        (
            "warning",
            "x",
            "holds NaN 64 times: training refuses such rows unless the column declares `nan_is_missing: true`, as the "
            "proposal does",
        )
    ]


def test_a_list_that_is_not_of_the_sequence_is_left_out_and_costs_no_row(
    random: np.random.Generator, tmp_path: Path
) -> None:
    lengths = random.integers(2, 5, ROWS)
    other = np.where(random.random(ROWS) < 0.19, lengths + 1, lengths)
    columns = {
        "x": [random.normal(size=length).tolist() for length in lengths],
        "z": [random.normal(size=length).tolist() for length in lengths],
        "ratings": [random.normal(size=length).tolist() for length in other],
        "label": random.integers(0, 2, ROWS),
        "__index_level_0__": np.arange(ROWS),
    }
    write(tmp_path / "a.parquet", columns)
    inspection = inspect_data(str(tmp_path))
    wrong = int((other != lengths).sum())
    text = f"in {wrong} of 240 rows its list is not as long as that of 'x': it is no sequence of theirs, and left out"
    assert found(inspection, "unaligned", "lengths-disagree") == [("warning", "ratings", text)]
    run = proposed(inspection)
    assert (inputs(run), run.data.on_bad_rows, run.data.key) == ({"x", "z"}, "error", None)
    assert "# left out: __index_level_0__: the index that pandas wrote, no value of the data\n" in (
        inspection.proposal.text or ""
    )


def test_columns_that_are_not_named_are_not_read(random: np.random.Generator, tmp_path: Path) -> None:
    columns = {"x": [random.normal(size=3).tolist() for _ in range(ROWS)], "label": random.integers(0, 2, ROWS)}
    path = tmp_path / "a.parquet"
    write(path, {**columns, "huge": ["…" * 9] * ROWS})
    chunk = pq.read_metadata(path).row_group(0).column(2)
    assert chunk.path_in_schema == "huge"
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    inspection = inspect_data(str(path), columns=["x"], label="label")
    assert (found(inspection, "damaged"), list(inspection.survey.columns)) == ([], ["x", "label"])
    run = proposed(inspection)
    assert found(inspect_data(str(path), config=run), "damaged") == []


# Events -----------------------------------------------------------------------------------------------------------


def events(random: np.random.Generator) -> dict[str, Any]:
    return {
        "userId": np.arange(ROWS) % 20,
        "movieId": random.integers(0, 90, ROWS),
        "timestamp": np.arange(ROWS) // 40,
        "rating": random.integers(1, 6, ROWS).astype(float),
    }


COMMAND = "make sequences of them with `dynamic-rnn prepare {data} sequences --key userId --time timestamp`"


def test_an_event_table_is_told_with_its_command_and_its_ties(random: np.random.Generator, tmp_path: Path) -> None:
    data = tmp_path / "events.parquet"
    write(data, events(random))
    inspection = inspect_data(str(data))
    told = f"no column holds lists: if each row is one event, {COMMAND.format(data=data)}"
    assert found(inspection, "event-table") == [("note", None, told)]
    assert inspection.proposal.reason == told
    assert found(inspection, "ties") == [
        (
            "warning",
            "timestamp",
            "240 of 240 (100.0 %) events have the time of another event of their key: the order of files and rows "
            "decides 220 of 220 (100.0 %) next values, those that `--label-shift 1` would make labels; name what "
            "orders them, too: `--time timestamp,COLUMN`",
        )
    ]


def test_ties_are_events_of_one_key_at_one_time() -> None:
    keys, times = np.array([1, 1, 1, 2, 2, 1], np.uint64), np.array([0.0, 5, 5, 5, 6, 9])
    assert ties_of(keys, times) == Ties(events=6, tied=2, labels=4, decided=3)
    assert ties_of(keys, np.array([0.0, 1, 2, 1, 2, np.nan])) == Ties(events=6, tied=0, labels=4, decided=0)


@pytest.mark.parametrize("tags", [lambda random: ["new", "sale", "gift"][: random.integers(0, 4)], lambda _: ["a"] * 8])
def test_events_that_hold_a_list_are_events(
    tags: Callable[[np.random.Generator], list[str]], random: np.random.Generator, tmp_path: Path
) -> None:
    data = tmp_path / "events.parquet"
    write(data, {**events(random), "tags": [tags(random) for _ in range(ROWS)]})
    inspection = inspect_data(str(data))
    assert inspection.survey.lengths is None
    assert found(inspection, "event-table") == [
        (
            "note",
            None,
            "each row looks like one event, whose 'tags' holds several values (else name columns with --columns), "
            + COMMAND.format(data=data),
        )
    ]


def test_sequences_with_key_and_time_are_no_events(random: np.random.Generator, tmp_path: Path) -> None:
    lengths = random.integers(1, 5, ROWS)
    columns = {
        "user_id": np.arange(ROWS) % 20,
        "started": np.arange(ROWS),
        "country": random.choice(["at", "de"], ROWS),
        "page": [random.choice(["a", "b"], length).tolist() for length in lengths],
        "seconds": [random.normal(size=length).tolist() for length in lengths],
        "label": random.integers(0, 2, ROWS),
    }
    write(tmp_path / "a.parquet", columns)
    assert inputs(proposed(inspect_data(str(tmp_path)))) == {"started", "country", "page", "seconds"}


def test_a_process_logs_case_is_the_key(random: np.random.Generator, tmp_path: Path) -> None:
    data = tmp_path / "log.parquet"
    columns = {
        "concept:name": random.choice(["register", "check: a", "pay"], ROWS),
        "case:concept:name": [f"case {row // 6}" for row in range(ROWS)],
        "time:timestamp": pa.array(np.arange(ROWS), pa.timestamp("s")),
    }
    write(data, columns)
    inspection = inspect_data(str(data), label="concept:name")
    assert inspection.proposal.reason.endswith(
        f"`dynamic-rnn prepare {data} sequences --key case:concept:name --time time:timestamp --label concept:name "
        "--label-shift 1`"
    )
