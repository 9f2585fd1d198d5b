"""Filters: how their text is read, which rows they keep, and what they leave unread."""

from __future__ import annotations

import operator
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError, DataError
from model.tables.filter_arrow import kept_rows
from model.tables.filters import Filter
from model.tables.fragments import Fragment
from model.tables.parquet import find, read_fragment
from pipelines.config import DataConfig, run_config
from pipelines.train.run import train

TIMES = pa.array([0, 86_400_000_000, None], pa.timestamp("us"))
TABLE = pa.table(
    {
        "small": pa.array([1, 2, None], pa.int8()),
        "large": pa.array([2**64 - 1, 2, None], pa.uint64()),
        "exact": pa.array([2**53 + 1, 2, None], pa.int64()),
        "score": [1.5, None, float("nan")],
        "single": pa.array([0.1, 2, None], pa.float32()),
        "price": pa.array([Decimal("1.25"), Decimal(2), None], pa.decimal128(9, 2)),
        "text": ["a", "b", None],
        "long": pa.array(["a", "b", None], pa.large_string()),
        "view": pa.array(["a", "b", None], pa.string_view()),
        "coded": pa.array(["a", "b", None]).dictionary_encode(),
        "paid": [True, False, None],
        "nothing": pa.nulls(3),
        "at": TIMES,
        "instant": TIMES.cast(pa.timestamp("us", "Europe/Berlin")),
        "day": TIMES.cast(pa.date32()),
        "hour": pa.array([3600, 7200, None], pa.time32("s")),
        "list": [[1], [2], None],
        "unit price": [1, 2, 3],
        "größe": [1, 2, 3],
    }
)
EXAMPLE = "; write it as in country == 'DE' and (year >= 2020 or score is null)"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("small == 1", "100"),
        ("small < 2020 and small > -3000", "110"),
        ("small in (1, 5000)", "100"),
        ("small not in [1]", "010"),
        ("small == 1.0", "100"),
        ("small < 1.5", "100"),
        ("small == score", "000"),
        ("1 < small <= 2", "010"),
        ("large > 18446744073709551614", "100"),
        ("large > -1", "110"),
        ("large > 1.5", "110"),
        ("exact > 1.5 and exact < 1e300", "110"),
        ("exact > score", "100"),
        ("exact < 10000000000000000000000", "110"),
        ("exact == 9007199254740993", "100"),
        ("exact == 9007199254740992", "000"),
        ("score > 1", "100"),
        ("not score > 1", "001"),
        ("score is null", "010"),
        ("single == 0.1", "100"),
        ("price > 1.3", "010"),
        ("price == 1.25", "100"),
        ("text == 'a'", "100"),
        ('"a" == text', "100"),
        ("not text in ('a', 'z')", "010"),
        ("text is not null", "110"),
        ("text is None", "001"),
        ("long >= 'b'", "010"),
        ("view == 'a'", "100"),
        ("coded in {'a'}", "100"),
        ("coded != 'a'", "010"),
        ("text == coded", "110"),
        ("paid", "100"),
        ("not paid", "010"),
        ("paid == true or paid == False", "110"),
        ("nothing == 1 or nothing in (1, 2)", "000"),
        ("nothing is null", "111"),
        ("not (nothing == 1)", "000"),
        ("at >= '1970-01-02'", "010"),
        ("at < '1970-01-01 12:00'", "100"),
        ("instant == '1970-01-02'", "010"),
        ("instant == '1970-01-02T01:00+01:00'", "010"),
        ("day == '1970-01-01'", "100"),
        ("hour > '01:30'", "010"),
        ("`unit price` > 1 and not (größe == 2)", "001"),
        ("größe >\n  2", "001"),
        ("small == 1 or größe == 3", "101"),
    ],
)
def test_a_filter_keeps_the_rows_for_which_it_is_true(text: str, kept: str) -> None:
    assert "".join("01"[row] for row in kept_rows(Filter(text), TABLE).tolist()) == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("list == 1", "column 'list': a filter compares single numbers, texts, truth values, times and dates, but the "
                      "type is list<item: int64>"),
        ("text == 5", "column 'text': the filter compares it with 5, but its type is string"),
        ("small == 'x'", "column 'small': the filter compares it with 'x', but its type is int8"),
        ("small == true", "column 'small': the filter compares it with True, but its type is int8"),
        ("paid > true", "column 'paid': the filter compares it with True, but its type is bool"),
        ("text", "column 'text': the filter takes it for a truth value, but its type is string"),
        ("small == text", "column 'small': the filter compares it with 'text', but their types are int8 and string"),
        ("at == 5", "column 'at': the filter compares it with 5, but its type is timestamp[us]: write a time as text, "
                    "such as '2024-01-31'"),
        ("at < '2024-01-01T00:00Z'", "column 'at': the filter compares it with '2024-01-01T00:00Z', but its type is "
                                     "timestamp[us]: write a time as text, such as '2024-01-31'"),
        ("absent == 1", "column 'absent': is not in the data; the columns are " + ", ".join(TABLE.column_names)),
    ],
)  # fmt: skip
def test_a_column_that_cannot_be_compared_so_is_told(text: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        kept_rows(Filter(text), TABLE)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "at its end"),
        ("x +", "at its end"),
        ("größe == [", "at its end"),
        ("1 == 1", "from '1 == 1' on"),
        ("country = 'DE'", "from \"country = 'DE'\" on"),
        ("größe == 1 or größe[0]", "from 'größe[0]' on"),
        ("x == 1 or len(x) == 2", "from 'len(x) == 2' on"),
        ("x == 1 and y is 5", "from '5' on"),
        ("x in 'abc'", "from \"'abc'\" on"),
        ("x in ()", "from '()' on"),
        ("x == null", "from 'null' on"),
        ("x == 10**9", "from '10**9' on"),
        ("x == b'x'", "from \"b'x'\" on"),
        ("x == f'{y}'", "from \"f'{y}'\" on"),
        ("x == - true", "from '- true' on"),
        ("true", "from 'true' on"),
        ("`a b` == 1 or `c d`(1)", "from '`c d`(1)' on"),
        ("x ==\n  1 and\n  [y]", "from '[y]' on"),
        ("__import__('os').system('touch /tmp/x')", "from \"__import__('os').system('touch /tmp/x')\" on"),
        ("(lambda: x)() == 1", "from '(lambda: x)() == 1' on"),
    ],
)
def test_a_text_that_cannot_be_read_is_told_with_the_place(text: str, where: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Filter(text)
    assert str(raised.value) == f"the filter {text!r} cannot be read {where}{EXAMPLE}"


def test_a_filter_of_a_config_is_read_at_once() -> None:
    assert DataConfig(train="x", filter="a == 1").where == Filter("a == 1")
    assert DataConfig(train="x").where is None
    with pytest.raises(ValueError, match=r"the filter 'a ==' cannot be read at its end"):
        DataConfig(train="x", filter="a ==")


# Against Python, row by row ---------------------------------------------------------------------------------------

ORDERS = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
NUMBER = st.none() | st.integers(-2, 2)


@st.composite
def conditions(draw: Any, depth: int = 3) -> tuple[str, Any]:
    """A filter's text, and what it makes of a row: True, False or None."""
    kind = draw(st.sampled_from(["order", "in", "null"] + (["not", "and", "or"] if depth else [])))
    if kind == "order":
        name, sign, value = draw(st.sampled_from("ab")), draw(st.sampled_from(list(ORDERS))), draw(st.integers(-2, 2))
        return f"{name} {sign} {value}", lambda row: None if row[name] is None else ORDERS[sign](row[name], value)
    if kind == "in":
        name, values = draw(st.sampled_from("ab")), draw(st.lists(st.integers(-2, 2), min_size=1, max_size=3))
        return f"{name} in {values}", lambda row: None if row[name] is None else row[name] in values
    if kind == "null":
        name = draw(st.sampled_from("ab"))
        return f"{name} is null", lambda row: row[name] is None
    text, of = draw(conditions(depth - 1))
    if kind == "not":
        return f"not ({text})", lambda row: None if of(row) is None else not of(row)
    other_text, other = draw(conditions(depth - 1))

    def joined(row: dict[str, Any]) -> bool | None:
        outcomes = {of(row), other(row)}
        decisive = kind == "or"
        return decisive if decisive in outcomes else None if None in outcomes else not decisive

    return f"({text}) {kind} ({other_text})", joined


@given(conditions(), st.lists(st.fixed_dictionaries({"a": NUMBER, "b": NUMBER}), min_size=1, max_size=8))
def test_nulls_are_unknown_as_in_sql(condition: tuple[str, Any], rows: list[dict[str, Any]]) -> None:
    text, of = condition
    table = pa.Table.from_pylist(rows, pa.schema({"a": pa.int64(), "b": pa.int16()}))
    assert kept_rows(Filter(text), table).tolist() == [of(row) is True for row in rows]


@given(conditions(), st.fixed_dictionaries({"a": NUMBER, "b": NUMBER}), st.sets(st.sampled_from("ab")))
def test_what_is_excluded_could_not_be_kept(condition: tuple[str, Any], row: dict[str, Any], known: set[str]) -> None:
    text, of = condition
    where = Filter(text)
    if where.excludes({name: row[name] for name in known}):
        assert of(row) is not True
    if known == {"a", "b"}:
        assert where.excludes(row) == (of(row) is not True)


@pytest.mark.parametrize(
    ("text", "known", "excluded"),
    [
        ("year == 2024", {"year": 2023}, True),
        ("year == 2024 and x == 1", {"year": 2023}, True),
        ("year == 2024 or x == 1", {"year": 2023}, False),
        ("not (x == 1 and year == 3)", {"year": 2}, False),
        ("country in ('a', 'b')", {"country": "z"}, True),
        ("country < 3", {"country": "z"}, False),  # a mistake that is told, not a file without rows
    ],
)
def test_paths_exclude_files(text: str, known: dict[str, Any], excluded: bool) -> None:
    assert Filter(text).excludes(known) == excluded


# Row groups -------------------------------------------------------------------------------------------------------


def damaged(path: Path, group: int) -> None:
    """Overwrites the pages of one row group."""
    content = bytearray(path.read_bytes())
    columns = pq.read_metadata(path).row_group(group)
    for number in range(columns.num_columns):
        chunk = columns.column(number)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """One file of three row groups: years 2020, 2021, 2022."""
    table = pa.table({"year": np.repeat([2020, 2021, 2022], 4), "x": [[float(i)] for i in range(12)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    return tmp_path / "a.parquet"


def test_a_row_group_that_the_statistics_exclude_is_not_read(parts: Path) -> None:
    damaged(parts, 0)
    with pytest.raises(DataError, match=r"row group 0 cannot be decoded"):
        read_fragment(find(parts, ["x"]).fragments[0], ["x"])
    found = find(parts, ["x"], where=Filter("year >= 2021"))
    assert found.fragments == [Fragment(str(parts), 1, 4, 4), Fragment(str(parts), 2, 4, 8)]
    assert (found.excluded_rows, found.excluded_files) == (4, 0)
    tables = [read_fragment(fragment, ["year", "x"]) for fragment in found.fragments]
    assert pa.concat_tables(tables)["year"].to_pylist() == [2021] * 4 + [2022] * 4


def test_a_filter_that_keeps_nothing_is_told(parts: Path) -> None:
    with pytest.raises(DataError) as raised:
        find(parts, ["x"], where=Filter("year > 3000"))
    assert str(raised.value) == (
        f"{parts}: must hold at least one row that the filter 'year > 3000' keeps, but no file or row group can hold "
        f"one"
    )


def test_a_filter_over_a_column_that_is_not_there_is_told(parts: Path) -> None:
    with pytest.raises(DataError) as raised:
        find(parts, ["x"], where=Filter("yaer > 3000"))
    assert str(raised.value) == (
        f"{parts}, column 'yaer': is not in the file; did you mean year?; its columns are year, x"
    )
    with pytest.raises(DataError) as raised:
        find(parts, ["x"], where=Filter("year > 'a'"))
    assert str(raised.value) == f"{parts}, column 'year': the filter compares it with 'a', but its type is int64"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_training_on_filtered_rows_is_training_on_those_rows_alone(
    tmp_path: Path, make_table: Any, make_config: Any
) -> None:
    """To the bit where the filter leaves out whole row groups, since then the others are numbered alike."""
    table = make_table(rows=32).append_column("part", pa.array(np.repeat([0, 1, 2, 3], 8)))
    for name, rows in (("all", table), ("some", table.slice(8))):
        (tmp_path / name).mkdir()
        pq.write_table(rows, tmp_path / name / "a.parquet", row_group_size=8)
    damaged(tmp_path / "all" / "a.parquet", 0)

    def fingerprint(name: str, where: str | None) -> str:
        run = {
            "name": name,
            "output": str(tmp_path / "runs"),
            "data": {"train": str(tmp_path / name), "key": "key", "validation_fraction": 0.3, "filter": where},
            "model": make_config(dropout_keep_probabilities=[0.9, 0.8, 1.0]).model_dump(mode="json"),
            "train": {"steps": 6, "batch_sequences": 4},
        }
        return train(run_config(run, where="run.yaml")).fingerprint

    assert fingerprint("all", "part >= 1") == fingerprint("some", None)


def test_the_documented_filters_can_be_read() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()
    config = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert DataConfig.model_validate(config["data"]).where == Filter("country == 'DE' and year >= 2020")
    table = page[page.index("| write | for |") : page.index("A comparison with a null")]
    written = [
        text for text in re.findall(r"`` (.*?) ``|`([^`]+)`", table) for text in text if " " in text and text[0] != "("
    ]
    assert len(written) >= 10
    assert all(Filter(text).columns for text in written if not text.startswith("not in"))
