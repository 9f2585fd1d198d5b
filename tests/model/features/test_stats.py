"""Statistics of fragments and what is fitted from them: any split into fragments tells the same of the data."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from model.columns import Identity, Numeric, Source, Vocabulary
from model.errors import DataError
from model.features.categorical import FittedIdentity, FittedVocabulary
from model.features.fit import fit_source
from model.features.numeric import FittedNumeric
from model.features.stats import ColumnStats, matrix_of, stats_of

NUMBERS = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=20)
CUTS = st.lists(st.integers(0, 20), max_size=5).map(sorted)
WORD = Vocabulary(name="word")


def parts_of(values: list[Any], cuts: list[int]) -> list[list[Any]]:
    edges = [0, *(min(cut, len(values)) for cut in cuts), len(values)]
    return [values[start:stop] for start, stop in pairwise(edges)]


def merged(source: Source, parts: list[list[Any]], kind: pa.DataType) -> ColumnStats:
    return reduce(ColumnStats.merge, (stats_of(source, pa.array(part, kind)) for part in parts))


@given(NUMBERS, CUTS)
def test_merged_moments_are_those_of_all_values(values: list[float | None], cuts: list[int]) -> None:
    stats = merged(Numeric(name="x"), parts_of(values, cuts), pa.float64())
    held = np.array([value for value in values if value is not None])
    assert stats.count.tolist() == [len(held)]
    if len(held):
        scale = np.abs(held).max() + 1e-300
        assert_allclose(stats.mean, [held.mean()], rtol=1e-12, atol=1e-13 * scale)
        assert_allclose(stats.squares, [((held - held.mean()) ** 2).sum()], rtol=1e-9, atol=1e-12 * scale**2)
        assert (stats.low, stats.high) == ([held.min()], [held.max()])


@given(st.lists(st.none() | st.sampled_from("abcde"), max_size=20), CUTS)
def test_merged_counts_are_those_of_all_values(values: list[str | None], cuts: list[int]) -> None:
    stats = merged(WORD, parts_of(values, cuts), pa.string())
    assert stats.keys == Counter(value for value in values if value is not None)


def test_vectors_have_moments_of_each_component() -> None:
    stats = merged(Numeric(name="x"), [[[1, 10], None], [[3, None]], []], pa.list_(pa.float64()))
    assert_array_equal(stats.count, [2, 1])
    assert_array_equal(stats.mean, [2, 10])
    assert_array_equal(stats.squares, [2, 0])


@pytest.mark.parametrize("empty", [[], [None], [None, None]])
@pytest.mark.parametrize("first", [True, False])
def test_a_fragment_without_values_says_nothing_of_the_width(empty: list[Any], first: bool) -> None:
    parts = [empty, [[1.0, 2.0]]] if first else [[[1.0, 2.0]], empty]
    assert merged(Numeric(name="x"), parts, pa.list_(pa.float64())).mean.tolist() == [1, 2]


def test_fragments_of_another_width_are_refused_not_broadcast() -> None:
    with pytest.raises(DataError) as raised:
        merged(Numeric(name="x"), [[[1.0]], [[1.0, 2.0]]], pa.list_(pa.float64()))
    assert str(raised.value) == "every entry must hold as many values, but some hold 1 and others 2"


def test_lists_in_any_fragment_make_a_column_of_several_values() -> None:
    one, lists = stats_of(WORD, pa.array(["a"])), stats_of(WORD, pa.array([["a", "b"], None]))
    assert (one.several, one.merge(lists).several, lists.merge(one).several) == (False, True, True)


@given(st.permutations(["b", "a", "c", "a", "c", "b", "d"]), CUTS)
def test_learned_keys_stand_by_falling_count_and_ties_by_value(words: list[str], cuts: list[int]) -> None:
    fitted = fit_source(WORD, merged(WORD, parts_of(words, cuts), pa.string()))
    assert fitted == FittedVocabulary(name="word", keys=("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("changes", "keys"),
    [({"max_keys": 2}, ("c", "a")), ({"min_count": 2}, ("c", "a")), ({"max_keys": 1, "min_count": 3}, ("c",))],
)
def test_rare_keys_are_left_out(changes: dict[str, int], keys: tuple[str, ...]) -> None:
    source = Vocabulary(name="word", **changes)
    fitted = fit_source(source, stats_of(source, pa.array(list("acbcac"))))
    assert fitted == FittedVocabulary(name="word", keys=keys)


def test_declared_keys_stand_as_declared_and_count_themselves_alone() -> None:
    source = Vocabulary(name="word", keys=("z", "a"), oov_buckets=0)
    stats = stats_of(source, pa.array(["q", "a", None, "a", "r"]))
    assert (stats.keys, stats.entries, stats.filled) == (Counter({"a": 2}), 5, 4)
    assert fit_source(source, stats) == FittedVocabulary(name="word", keys=("z", "a"), oov_buckets=0)


def test_integers_and_booleans_are_keys_too() -> None:
    for kind in (pa.uint8(), pa.int32(), pa.uint64()):
        assert fit_source(WORD, stats_of(WORD, pa.array([7, None, 7, 3], kind))).keys == (7, 3)
    assert fit_source(WORD, stats_of(WORD, pa.array([True, False, True]))).keys == (1, 0)


@pytest.mark.parametrize(
    ("source", "values", "kind", "message"),
    [
        (
            WORD,
            [[2.0], [1, 1.5]],
            pa.list_(pa.float64()),
            "row 1, column 'word': a category, class or key must be a whole number or a string, but one is 1.5",
        ),
        (WORD, [b"\xff"], None, "row 0, column 'word': bytes must hold text in UTF-8, but one holds b'\\xff'"),
        (WORD, [[["a"]]], None, "column 'word': must hold strings or integers, but its type is list<item: string>"),
        (
            WORD,
            [1, 2**63],
            pa.uint64(),
            "row 1, column 'word': integers must be less than 2^63, but one is 9223372036854775808; store them as "
            "strings",
        ),
        (
            WORD,
            [[], [1, 2], [3, 2**64 - 1]],
            pa.list_(pa.uint64()),
            "row 2, column 'word': integers must be less than 2^63, but one is 18446744073709551615; store them as "
            "strings",
        ),
        (Numeric(name="x"), ["1"], None, "column 'x': must hold numbers, but its type is string"),
        (
            Numeric(name="x"),
            [1.0, float("-inf")],
            None,
            "row 1, column 'x': must be finite numbers within float32's range, but an entry is -inf",
        ),
        (
            Numeric(name="x"),
            [1e39],
            None,
            "row 0, column 'x': must be finite numbers within float32's range, but an entry is 1e+39",
        ),
        (
            Numeric(name="x"),
            [[1, 2], [1], None],
            None,
            "row 1, column 'x': every entry must hold 2 values, but this one holds 1",
        ),
        (
            Numeric(name="x"),
            [None, [], [1, 2]],
            None,
            "row 1, column 'x': every entry must hold 2 values, but this one holds 0",
        ),
    ],
)
def test_values_that_cannot_be_fitted_are_told(source: Source, values: Any, kind: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        stats_of(source, pa.array(values, kind))
    assert str(raised.value) == message


def test_strings_that_are_no_text_are_told() -> None:
    with pytest.raises(DataError) as raised:
        stats_of(WORD, pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()))
    assert str(raised.value) == "column 'word': must hold strings in UTF-8, but one is not"


@pytest.mark.parametrize(
    ("source", "parts", "message"),
    [
        (
            WORD,
            [pa.array(["a"]), pa.array([1])],
            "column 'word': must hold strings or integers, but some files hold one and some the other",
        ),
        (
            Vocabulary(name="word", oov_buckets=0),
            [pa.array([None], pa.string())],
            "column 'word': must hold at least one value to learn a vocabulary from, but it holds none",
        ),
        (
            Numeric(name="x", dimension=3),
            [pa.array([[1.0, 2.0]])],
            "column 'x': is declared with dimension 3, but the data hold 2 values a step; correct the declaration or "
            "leave it out",
        ),
    ],
)
def test_data_that_contradict_the_declaration_are_told(source: Source, parts: list[pa.Array], message: str) -> None:
    with pytest.raises(DataError) as raised:
        fit_source(source, reduce(ColumnStats.merge, (stats_of(source, part) for part in parts)))
    assert str(raised.value) == message


# Normalizers --------------------------------------------------------------------------------------------------


def fitted_numeric(values: Any, kind: Any = None, **changes: Any) -> FittedNumeric:
    source = Numeric(name="x", **changes)
    fitted = fit_source(source, stats_of(source, pa.nulls(2) if values is None else pa.array(values, kind)))
    assert isinstance(fitted, FittedNumeric)
    return fitted


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True))
def test_zscore_gives_mean_0_and_deviation_1(values: list[int]) -> None:
    found = fitted_numeric(values, normalizer="zscore").encode(pa.array(values)).values.astype(np.float64)
    assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True))
def test_minmax_gives_0_to_1(values: list[int]) -> None:
    found = fitted_numeric(values, normalizer="minmax").encode(pa.array(values)).values
    assert (found.min(), found.max()) == (0, 1)


def test_log1p_needs_no_data() -> None:
    fitted = fitted_numeric([5.0], normalizer="log1p")
    assert_allclose(fitted.encode(pa.array([0.0, 1.0])).values, np.log1p([[0.0], [1.0]]), rtol=1e-6)


@pytest.mark.parametrize("normalizer", ["zscore", "minmax"])
@pytest.mark.parametrize("values", [[0.1, 0.1, 0.1], [7.0], [0.0, 5e-324], [None, None]])
def test_a_column_that_does_not_vary_is_not_blown_up(normalizer: str, values: list[Any]) -> None:
    fitted = fitted_numeric(values, pa.float64(), normalizer=normalizer)
    assert fitted.scale == (1.0,)
    assert fitted.shift == (values[0] or 0.0,)


@pytest.mark.parametrize("normalizer", ["zscore", "minmax"])
def test_a_component_that_is_always_null_is_left_as_it_is(normalizer: str) -> None:
    fitted = fitted_numeric([[1.0, None], [3.0, None]], normalizer=normalizer, missing=0)
    assert fitted.shift == ((2.0, 0.0) if normalizer == "zscore" else (1.0, 0.0))
    assert fitted.scale == ((1.0, 1.0) if normalizer == "zscore" else (0.5, 1.0))


def test_a_null_becomes_the_mean_or_a_number_before_it_is_normalised() -> None:
    by_mean = fitted_numeric([1.0, 3.0, None], normalizer="minmax", missing="mean")
    by_number = fitted_numeric([1.0, 3.0, None], normalizer="minmax", missing=5)
    assert by_mean.encode(pa.array([None, 1.0])).values.tolist() == [[0.5], [0]]
    assert by_number.encode(pa.array([None, 1.0])).values.tolist() == [[2], [0]]


@pytest.mark.parametrize(("declared", "dimension"), [(None, 1), (1, 1), (3, 3)])
def test_nulls_alone_say_nothing_of_the_width(declared: int | None, dimension: int) -> None:
    fitted = fitted_numeric(None, missing=2, dimension=declared)
    assert (fitted.dimension, fitted.fill) == (dimension, (2.0,) * dimension)


def test_identity_needs_nothing_but_its_declaration() -> None:
    source = Identity(name="i", buckets=3)
    assert fit_source(source, stats_of(source, pa.array([[5]]))) == FittedIdentity(name="i", buckets=3, several=True)


@pytest.mark.parametrize("entries", [pa.nulls(2), pa.array([None, None], pa.list_(pa.float64()))])
def test_only_nulls_have_the_width_that_is_asked_for(entries: pa.Array) -> None:
    found = matrix_of(entries, "x", 3)
    assert found.shape == (2, 3)
    assert np.isnan(found).all()
