"""Profiles of columns against numpy and pandas; merged parts tell what the whole tells."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.inspect.column_profile import ColumnProfile, Places, profile_column
from pipelines.inspect.label_relations import NEXT, PREVIOUS, Entries, Relation
from pipelines.inspect.profile_task import FragmentProfile, Look, profile_table
from pipelines.inspect.sketches import MOST_DISTINCT, MOST_TOP, Coded, Distinct, TopValues, hashes_of, readable


def profiled(array: pa.Array, first: int = 0) -> ColumnProfile:
    return profile_column(array, "x", "a.parquet", first + np.arange(len(array)))[0]


def plain(profile: ColumnProfile) -> str:
    return json.dumps(profile.to_plain())


# Sketches -------------------------------------------------------------------------------------------------------


def test_equal_numbers_of_any_type_hash_alike_and_others_do_not() -> None:
    whole = hashes_of(pa.array([0, 1, -5, 2**40], pa.int64()))
    assert (whole == hashes_of(pa.array([-0.0, 1.0, -5.0, 2.0**40]))).all()
    assert (hashes_of(pa.array([1, 0], pa.uint8())) == hashes_of(pa.array([True, False]))).all()
    assert (hashes_of(pa.array([Decimal("2.50")])) == hashes_of(pa.array([2.5]))).all()
    large = hashes_of(pa.array([2**60, 2**60 + 1, 2**63 - 1, -(2**60)], pa.int64()))
    assert len(set(large.tolist())) == 4
    assert (hashes_of(pa.array(["a", "b"])) == hashes_of(pa.array(["a", "b"], pa.large_string()))).all()


@pytest.mark.parametrize("count", [0, 1, MOST_DISTINCT - 1])
def test_few_distinct_values_are_counted_exactly(count: int) -> None:
    told = Distinct.of(hashes_of(pa.array(range(count), pa.int64())))
    assert (told.count, told.exact) == (count, True)


@pytest.mark.parametrize("count", [MOST_DISTINCT, 50_000, 300_000])
def test_many_distinct_values_are_estimated_within_five_deviations(count: int) -> None:
    hashes = hashes_of(pa.array([f"value {number}" for number in range(count)]))
    told = Distinct.of(hashes)
    assert not told.exact
    assert abs(told.count - count) <= 5 * 0.0157 * count
    parts = Distinct()
    for part in np.array_split(hashes, 7):
        parts = parts.merge(Distinct.of(np.concatenate([part, part[:5]])))
    assert (parts.smallest == told.smallest).all()
    assert (Distinct.from_plain(told.to_plain()).smallest == told.smallest).all()


@given(st.lists(st.lists(st.integers(0, 2000), max_size=3000), min_size=1, max_size=4), st.integers(0, 5))
def test_top_values_are_too_small_by_at_most_their_error(parts: list[list[int]], favourite: int) -> None:
    arrays = [pa.array([*part, *[favourite] * len(part)], pa.int64()) for part in parts]
    told = TopValues()
    for array in arrays:
        told = told.merge(TopValues.of(Coded.of(array)))
    true = Counter(value for array in arrays for value in array.to_pylist())
    assert len(told.counts) <= MOST_TOP
    assert told.error <= sum(true.values()) / MOST_TOP
    for value, count in true.items():
        assert count - told.error <= told.counts.get(value, 0) <= count
    if len(true) <= MOST_TOP:
        assert told.counts == true
    assert TopValues.from_plain(json.loads(json.dumps(told.to_plain()))) == told


def test_values_beyond_the_most_that_are_kept_leave_an_error_and_the_frequent_ones() -> None:
    values = pa.array([*range(3 * MOST_TOP), *[7] * 50, *[9] * 40], pa.int64())
    told = TopValues.of(Coded.of(values))
    assert told.error == 1
    assert told.most(2) == [(7, 50), (9, 40)]
    merged = told.merge(TopValues.of(Coded.of(pa.array([f"s{n}" for n in range(2 * MOST_TOP)]))))
    assert merged.error == 2
    assert merged.most(1) == [(7, 50)]


def test_long_texts_are_cut_and_stay_apart() -> None:
    texts = ["a" * 100 + end for end in ("x", "y")]
    shown = readable(pa.array(texts))
    assert len(set(shown)) == 2
    assert all(isinstance(text, str) and len(text) <= 80 and text.startswith("aaaa") for text in shown)
    assert readable(pa.array([1.5, np.nan, np.inf])) == [1.5, "nan", "inf"]


# Columns --------------------------------------------------------------------------------------------------------


def test_numbers_agree_with_numpy() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(0, 9, 60)
    values = np.round(random.normal(0, 3, lengths.sum()), 1)
    null = random.random(len(values)) < 0.1
    lists = pa.ListArray.from_arrays(pa.array([0, *np.cumsum(lengths)], pa.int32()), pa.array(values, mask=null))
    told = profiled(lists)
    known = values[~null]
    assert told.types == {"list<double>": 60}
    assert (told.kind, told.depth, told.integers) == ("number", 1, False)
    assert told.counts["steps"] == told.counts["values"] == len(values)
    assert told.counts["empty_rows"] == (lengths == 0).sum()
    assert told.counts["null_values"] == told.missing == null.sum()
    assert told.counts["zeros"] == (known == 0).sum()
    assert told.counts["negatives"] == (known < 0).sum()
    assert told.counts["fractions"] == (known != np.floor(known)).sum()
    assert told.distinct.count == len(set((known + 0.0).tolist()))
    assert told.top.counts == Counter((known + 0.0).tolist())
    assert told.moments.mean[0] == pytest.approx(known.mean(), rel=1e-12)
    assert np.sqrt(told.moments.squares[0] / told.moments.count[0]) == pytest.approx(known.std(), rel=1e-12)
    shares = [0.0, 0.1, 0.5, 0.9, 1.0]
    assert told.quantiles.quantiles(shares).tolist() == np.quantile(known, shares, method="inverted_cdf").tolist()


def test_strings_agree_with_pandas() -> None:
    random = np.random.default_rng(0)
    words = pd.Series(random.choice(["", "a", "日本", "<b>", "a b"], 500)).where(random.random(500) > 0.1)
    told = profiled(pa.array(words.tolist(), pa.string(), from_pandas=True))
    assert told.missing == words.isna().sum()
    assert told.distinct.count == words.nunique()
    assert told.top.counts == words.value_counts().to_dict()
    assert told.characters == (0, 3)
    assert told.kind == "string"


def test_nan_infinity_and_null_are_told_apart_with_their_rows() -> None:
    lists = pa.array([[1.0, float("nan")], None, [], [None, float("inf")], [1e300], [float("-inf"), float("nan")]])
    told = profiled(lists, first=10)
    assert told.counts["null_rows"] == told.counts["empty_rows"] == 1
    assert (told.counts["nan"], told.counts["infinite"], told.counts["beyond_float32"]) == (2, 2, 1)
    assert told.counts["null_values"] == 1
    assert told.places == {
        "null": Places((("a.parquet", 13),)),
        "nan": Places((("a.parquet", 10), ("a.parquet", 15))),
        "infinite": Places((("a.parquet", 13), ("a.parquet", 15))),
        "beyond_float32": Places((("a.parquet", 14),)),
    }
    assert told.moments.mean[0] == 1.0


def test_vectors_have_a_mean_for_each_of_their_numbers() -> None:
    matrix = np.arange(12.0).reshape(6, 2)
    steps = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 2)
    for column in (
        pa.ListArray.from_arrays(pa.array([0, 2, 2, 6], pa.int32()), steps),
        pa.array([matrix[:2].tolist(), [], matrix[2:].tolist()]),
        steps,
    ):
        told = profiled(column)
        assert told.widths == (2, 2)
        assert told.moments.mean.tolist() == matrix.mean(0).tolist()
    uneven = profiled(pa.array([[[1.0], [2.0, 3.0]]]))
    assert uneven.widths == (1, 2)
    assert not uneven.moments.count.any()
    assert extremes(uneven) == (0, 0)
    other = profiled(pa.array([[[1.0, 2.0]], [], [[3.0], [], None], [[3.0, 4.0]]]), first=10)
    assert (other.widths, extremes(other)) == ((0, 2), (12, 10))
    assert extremes(uneven.merge(other)) == (12, 0)
    assert extremes(other.merge(uneven)) == (12, 10)


def extremes(profile: ColumnProfile) -> tuple[int, int]:
    """The rows that are named for the fewest and the most numbers in a step."""
    ((_, least),), ((_, most),) = profile.places["narrowest"].found, profile.places["widest"].found
    return least, most


@pytest.mark.parametrize(
    ("array", "kind", "count"),
    [
        (pa.array([True, False, None]), "boolean", 2),
        (pa.array(["a", "b", "a"]).dictionary_encode(), "string", 2),
        (pa.array([1, 2, 3], pa.timestamp("ms")), "time", 3),
        (pa.array([1, 2, 2], pa.duration("s")), "time", 2),
        (pa.array([1, 1, 1], pa.date32()), "time", 1),
        (pa.array([Decimal("1.5"), Decimal("2.5")]), "number", 2),
        (pa.nulls(4), "nothing", 0),
        (pa.array([], pa.list_(pa.int8())), "number", 0),
        (pa.array([{"a": 1}]), "other", 0),
        (pa.array([b"\xff"], pa.binary()), "other", 0),
        (pa.array([[[[1]]]]), "other", 0),
        (pa.array([[["a"], None, []]]), "string", 1),
    ],
    ids=str,
)
def test_every_type_is_told(array: pa.Array, kind: str, count: int) -> None:
    told = profiled(array)
    assert (told.kind, told.distinct.count, told.counts["rows"]) == (kind, count, len(array))
    assert plain(ColumnProfile.from_plain(json.loads(plain(told)))) == plain(told)


def test_strings_that_are_no_utf8_are_told_and_not_read() -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    told = profiled(broken)
    assert (told.kind, told.counts["not_utf8"], told.distinct.count) == ("other", 1, 0)


def test_parts_merge_to_the_whole_whatever_the_cuts() -> None:
    random = np.random.default_rng(1)
    lists = pa.array([random.integers(-3, 9, length).astype(float).tolist() for length in random.integers(0, 6, 90)])
    whole = profiled(lists)
    for cuts in ([30, 60], [1, 2, 88]):
        bounds = [0, *cuts, 90]
        merged = profiled(lists[: bounds[1]])
        for start, stop in pairwise(bounds[1:]):
            part = profiled(lists[start:stop], first=start)
            merged = merged.merge(ColumnProfile.from_plain(json.loads(plain(part))))
        assert merged.counts == whole.counts
        assert merged.top.counts == whole.top.counts
        assert merged.distinct.count == whole.distinct.count
        assert merged.quantiles.to_plain() == whole.quantiles.to_plain()
        np.testing.assert_allclose(merged.moments.mean, whole.moments.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.moments.squares, whole.moments.squares, rtol=1e-12)


def test_files_of_other_types_merge_and_keep_both() -> None:
    both = profiled(pa.array([[1, 2]], pa.list_(pa.int32()))).merge(profiled(pa.array([[0.5]])))
    assert both.types == {"list<int32>": 1, "list<double>": 1}
    assert (both.kind, both.integers, both.distinct.count) == ("number", False, 3)
    empty = profiled(pa.nulls(3)).merge(profiled(pa.array([1, 2, 3])))
    assert (empty.kind, empty.integers, empty.missing) == ("number", True, 3)
    assert profiled(pa.array([1])).merge(profiled(pa.array(["a"]))).kind == "other"


# The label ------------------------------------------------------------------------------------------------------


def related(values: list[float], labels: list[float], offsets: list[int] | None = None) -> Relation:
    coded = [Coded.of(pa.array(told)) for told in (values, labels)]
    x, y = (
        Entries(each.codes, each.hashes, np.array(told, float))
        for each, told in zip(coded, (values, labels), strict=True)
    )
    return Relation.of(x, y, None if offsets is None else np.array(offsets))


def test_relations_agree_with_pandas_and_merge() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 6, 200).astype(float)
    y = np.where(random.random(200) < 0.8, x // 2, random.integers(0, 3, 200))
    frame = pd.DataFrame({"x": x, "y": y})
    merged = related(x[:50].tolist(), y[:50].tolist()).merge(related(x[50:].tolist(), y[50:].tolist()))
    for told in (related(x.tolist(), y.tolist()), Relation.from_plain(json.loads(json.dumps(merged.to_plain())))):
        right = frame.groupby("x")["y"].agg(lambda part: part.value_counts().iloc[0]).sum() / 200
        assert told.decided == (pytest.approx(right), 200 - frame["x"].nunique())
        assert told.guessed == pytest.approx(frame["y"].value_counts(normalize=True).iloc[0])
        assert told.correlation == pytest.approx(frame["x"].corr(frame["y"]))
        assert told.equal == (x == y).sum()


def test_neighbouring_steps_are_compared_within_their_rows_only() -> None:
    values = [1.0, 2.0, 3.0, 7.0, 8.0]
    following = related(values, [2.0, 3.0, 0.0, 8.0, 0.0], [0, 3, 3, 5])
    assert following.shift(NEXT) == 1
    assert following.shifted == {NEXT: (3, 3), PREVIOUS: (0, 3)}
    before = related(values, [0.0, 1.0, 2.0, 0.0, 7.0], [0, 3, 3, 5])
    assert before.shift(PREVIOUS) == 1
    assert related([1.0], [1.0], [0, 1]).shift(NEXT) is None


def test_too_many_pairs_are_given_up() -> None:
    random = np.random.default_rng(0)
    many = random.normal(size=5000).tolist()
    assert related(many, many).decided is None
    assert related(many, many).correlation == pytest.approx(1)
    halves = related(many[:2500], many[:2500]).merge(related(many[2500:], many[2500:]))
    assert halves.decided is None


# A row group ----------------------------------------------------------------------------------------------------


def test_lists_of_other_lengths_are_counted_with_their_rows() -> None:
    table = pa.table({"a": [[1], [2, 3], []], "b": [["x"], ["y"], None], "c": [[1.0], [2.0, 3.0], []], "d": [1, 2, 3]})
    told = profile_table(table, Look(reference="a"), "a.parquet", np.array([5, 7, 9]))
    assert {name: found.rows for name, found in told.disagreements.items()} == {"b": 1, "c": 0}
    assert told.disagreements["b"].places == Places((("a.parquet", 7),))
    assert told.lengths is not None
    assert told.lengths.tolist() == [1, 2, 0]
    peeked = profile_table(table, Look(), "a.parquet", np.arange(3))
    assert peeked.alike == {"a": 5, "b": 4, "c": 5}


def test_the_last_step_is_held_against_a_label_a_row_and_every_step_against_one_a_step() -> None:
    table = pa.table({"x": [[5, 1], [], [0]], "row": [1, 2, 0], "each": [[5, 1], [], [0]], "v": [[[5, 9]] * 2, [], []]})
    single = profile_table(table, Look(reference="x", label="row"), "", np.arange(3)).relations
    assert (single["x"].compared, single["x"].equal, single["x"].last) == (2, 2, True)
    steps = profile_table(table, Look(reference="x", label="each"), "", np.arange(3)).relations
    assert (steps["x"].compared, steps["x"].equal, steps["x"].last) == (3, 3, False)
    assert (steps["v[0]"].compared, steps["v[0]"].equal) == (2, 1)
    assert (steps["row"].compared, steps["row"].equal) == (3, 2)


def test_a_profile_travels_as_json() -> None:
    table = pa.table({"x": [[1.0, 2.0], []], "k": ["a", "b"], "y": [0, 1]})
    told = profile_table(table, Look(reference="x", label="y", key=("k",), sample=True), "f", np.arange(2))
    again = FragmentProfile.from_plain(json.loads(json.dumps(told.to_plain())))
    assert json.dumps(again.to_plain()) == json.dumps(told.to_plain())
    assert again.sample == [{"x": "[1.0, 2.0]", "k": '"a"', "y": "0"}, {"x": "[]", "k": '"b"', "y": "1"}]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)])
def test_bytes_are_text_where_they_are_utf8(kind: pa.DataType) -> None:
    texts = pa.array([[b"ab", "é".encode()], None, [b"ab"]], pa.list_(kind))
    profile, coded = profile_column(texts, "c", "f.parquet", np.arange(3))
    assert (profile.kind, coded is not None) == ("string", True)
    assert profile.top.counts == {"ab": 2, "é": 1}
    other, _ = profile_column(pa.array([[b"\xff\xfe"]], pa.list_(kind)), "c", "f.parquet", np.arange(1))
    assert (other.kind, other.counts["not_utf8"]) == ("other", 1)
