"""Quantiles of a mergeable summary: exact while small, then within the rank error it states; the same bits always."""

from __future__ import annotations

import json
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.features import quantile_sketch as quantiles
from model.features.quantile_sketch import LEVEL_VALUES, MOST_EXACT, QuantileSketch

NUMBERS = st.lists(st.floats(-1e300, 1e300) | st.sampled_from([0.0, -0.0, 1.0, 2.0]), max_size=60)
CUTS = st.lists(st.integers(0, 60), max_size=5).map(sorted)
SHARES = np.arange(9) / 8  # exact in binary: shares · count is too
LARGE = 300_000


def parts_of(numbers: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    edges = [0, *(min(cut, len(numbers)) for cut in cuts), len(numbers)]
    return [numbers[start:stop] for start, stop in pairwise(edges)]


def merged(parts: list[np.ndarray]) -> QuantileSketch:
    return reduce(QuantileSketch.merge, map(QuantileSketch.of, parts))


def bits(sketch: QuantileSketch) -> str:
    return json.dumps(sketch.to_plain())


def rank_errors(sketch: QuantileSketch, numbers: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How far each quantile's ranks (of all that equal it) lie from share · count."""
    ordered, found = np.sort(numbers), sketch.quantiles(shares)
    below = np.searchsorted(ordered, found, side="left")
    up_to = np.searchsorted(ordered, found, side="right")
    wanted = shares * len(numbers)
    return np.asarray(np.maximum(np.maximum(below - wanted, wanted - up_to), 0))


def shapes() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "normal": random.normal(size=LARGE),
        "heavy tail": random.pareto(0.5, LARGE),
        "rising": np.arange(LARGE, dtype=float),
        "falling": -np.arange(LARGE, dtype=float),
        "two heaps": np.concatenate([random.normal(-1e6, 1, LARGE // 2), random.normal(1e6, 1, LARGE // 2)]),
        "one value beside many": np.where(random.random(LARGE) < 0.5, 3.0, random.normal(3, 1, LARGE)),
        "frequent and distinct": np.concatenate([np.repeat(np.arange(80_000.0), 3), random.normal(4e4, 1, 60_000)]),
    }


@given(NUMBERS, CUTS)
def test_while_small_they_are_the_quantiles_of_all_numbers(numbers: list[float], cuts: list[int]) -> None:
    array = np.array(numbers, np.float64)
    sketch = merged(parts_of(array, cuts))
    assert sketch.exact
    assert sketch.count == len(array)
    if not numbers:
        assert np.isnan(sketch.quantiles(SHARES)).all()
        return
    np.testing.assert_array_equal(sketch.quantiles(SHARES), np.quantile(array, SHARES, method="inverted_cdf"))
    assert (sketch.low, sketch.high) == (array.min(), array.max())
    assert [sketch.rank(number) for number in numbers] == [(array <= number).sum() for number in numbers]


@given(NUMBERS, CUTS)
def test_while_small_any_cut_gives_the_same_bits(numbers: list[float], cuts: list[int]) -> None:
    array = np.array(numbers, np.float64)
    assert bits(merged(parts_of(array, cuts))) == bits(QuantileSketch.of(array))


def test_up_to_the_documented_size_nothing_is_lost_and_beyond_it_something_is() -> None:
    numbers = np.random.default_rng(0).permutation(MOST_EXACT + 1).astype(float)
    assert QuantileSketch.of(numbers[:-1]).exact
    assert merged(np.array_split(numbers[:-1], 5)).exact
    assert QuantileSketch.of(np.repeat(numbers[:-1], 3)).exact  # however often each stands
    assert not QuantileSketch.of(numbers).exact
    assert not merged(np.array_split(numbers, 5)).exact


@pytest.mark.parametrize("fragments", [1, 3, 41])
@pytest.mark.parametrize("shape", shapes())
def test_beyond_it_ranks_are_off_by_no_more_than_is_said(shape: str, fragments: int) -> None:
    numbers = shapes()[shape]
    sketch = merged(np.array_split(numbers, fragments))
    assert sketch.count == LARGE
    errors = rank_errors(sketch, numbers, np.linspace(0, 1, 1001))
    assert errors.max() <= sketch.rank_error + 1e-6
    levels = 1 + np.log2(LARGE / LEVEL_VALUES)
    assert sketch.rank_error <= LARGE * levels / LEVEL_VALUES <= 0.0011 * LARGE
    probes = np.random.default_rng(1).choice(numbers, 200)
    ranks = np.searchsorted(np.sort(numbers), probes, side="right")
    assert np.abs([sketch.rank(probe) for probe in probes] - ranks).max() <= sketch.rank_error
    assert (sketch.low, sketch.high) == (numbers.min(), numbers.max())
    assert sketch.quantiles([0, 1]).tolist() == [numbers.min(), numbers.max()]


def test_the_bound_holds_over_many_merges_of_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small limits make a few thousand numbers go through as many levels as a thousand million do otherwise.
    monkeypatch.setattr(quantiles, "MOST_EXACT", 64)
    monkeypatch.setattr(quantiles, "LEVEL_VALUES", 16)

    @settings(max_examples=40)
    @given(st.lists(st.integers(1, 900), min_size=1, max_size=12), st.integers(0, 2**32 - 1), st.integers(2, 5000))
    def check(sizes: list[int], seed: int, distinct: int) -> None:
        random = np.random.default_rng(seed)
        parts = [random.integers(0, distinct, size).astype(float) for size in sizes]
        sketch, numbers = merged(parts), np.concatenate(parts)
        assert sketch.count == len(numbers)
        assert rank_errors(sketch, numbers, np.linspace(0, 1, 101)).max() <= sketch.rank_error + 1e-6
        assert sketch.rank_error <= len(numbers) * max(1 + np.log2(len(numbers) / 16), 0) / 16
        assert len(sketch.values) <= max(64, 17 * len(sketch.compactions))

    check()


def test_memory_stays_bounded() -> None:
    random = np.random.default_rng(3)
    sketch = QuantileSketch()
    for _ in range(30):
        sketch = sketch.merge(QuantileSketch.of(random.normal(size=100_000)))
        assert len(sketch.values) <= MOST_EXACT
    assert sketch.count == 3_000_000
    assert len(json.dumps(QuantileSketch.of(random.normal(size=1_000_000)).to_plain())) < 200_000


def test_a_sequence_of_merges_gives_the_same_bits_every_time() -> None:
    numbers = shapes()["heavy tail"]
    parts = [QuantileSketch.of(part) for part in np.array_split(numbers, 9)]
    travelled = [QuantileSketch.from_plain(json.loads(bits(part))) for part in parts]
    assert bits(reduce(QuantileSketch.merge, parts)) == bits(reduce(QuantileSketch.merge, travelled))
    assert bits(merged(np.array_split(numbers, 9))) == bits(reduce(QuantileSketch.merge, parts))


def test_a_merge_changes_neither_part() -> None:
    one, other = QuantileSketch.of(np.arange(40_000.0)), QuantileSketch.of(np.arange(30_000.5, 70_000))
    before = bits(one), bits(other)
    assert not one.merge(other).exact
    assert (bits(one), bits(other)) == before


def test_missing_numbers_do_not_count_and_minus_zero_is_zero() -> None:
    sketch = QuantileSketch.of(np.array([[np.nan, -0.0], [2.0, np.nan]]))
    assert (sketch.count, sketch.values.tolist()) == (2, [0.0, 2.0])
    assert not np.signbit(sketch.values).any()
    assert QuantileSketch.of(np.array([np.nan, np.nan])).count == 0


def test_what_travels_comes_back_bit_by_bit() -> None:
    for sketch in (QuantileSketch(), QuantileSketch.of(np.array([np.pi, 5e-324, -1e308])), merged([np.arange(1e5)])):
        again = QuantileSketch.from_plain(json.loads(bits(sketch)))
        assert bits(again) == bits(sketch)
        assert bits(again.merge(QuantileSketch.of(np.ones(1)))) == bits(sketch.merge(QuantileSketch.of(np.ones(1))))


# Edges: a number on an edge goes up ------------------------------------------------------------------------------


@given(st.integers(2, 12), st.integers(1, 50))
def test_edges_cut_distinct_numbers_into_parts_that_differ_by_one_at_most(intervals: int, count: int) -> None:
    numbers = np.random.default_rng(count).permutation(count).astype(float)
    edges = QuantileSketch.of(numbers).edges(intervals)
    sizes = np.bincount(np.searchsorted(edges, numbers, side="right"))
    assert len(sizes) == len(edges) + 1 == min(intervals, count)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("numbers", "intervals", "edges"),
    [
        ([], 4, []),
        ([5.0, 5.0, 5.0], 4, []),
        ([1.0, 2.0], 10, [2.0]),
        ([0.0] * 90 + [7.0] * 10, 10, [7.0]),
        ([1.0] * 10 + [2.0] * 90, 10, [2.0]),
        ([1.0, 2.0, 3.0, 4.0], 2, [3.0]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 5, [2.0, 3.0, 4.0, 5.0]),
        ([1.0, 1.0, 1.0, 4.0], 4, [4.0]),
    ],
)
def test_equal_numbers_stay_together(numbers: list[float], intervals: int, edges: list[float]) -> None:
    assert QuantileSketch.of(np.array(numbers)).edges(intervals).tolist() == edges


def test_edges_of_many_numbers_cut_like_parts() -> None:
    numbers = shapes()["normal"]
    sketch = merged(np.array_split(numbers, 17))
    sizes = np.bincount(np.searchsorted(sketch.edges(10), numbers, side="right"))
    assert np.abs(sizes - LARGE / 10).max() <= 2 * sketch.rank_error + 1


def test_a_rising_function_maps_what_is_summarised() -> None:
    sketch = QuantileSketch.of(np.array([-3.0, 0.2, 0.4, 9.0]))
    assert sketch.mapped(np.floor).values.tolist() == [-3, 0, 9]
    assert sketch.mapped(np.floor).weights.tolist() == [1, 2, 1]
    mapped = merged([np.arange(1e5)]).mapped(lambda values: values * 2 + 1)
    assert (mapped.low, mapped.high, mapped.count) == (1.0, 199_999.0, 100_000)
    assert mapped.rank_error == merged([np.arange(1e5)]).rank_error > 0
