"""The yardsticks: against figures worked out by hand, and against a slow counter written another way."""

from __future__ import annotations

import lzma
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import DataError
from pipelines.demo.baselines import Baselines, baselines, lzma_bits, order0_bits, order2_bits, read_symbols
from pipelines.demo.data import ALPHABET, DemoData, write_demo_data

V = len(ALPHABET)
LISTS = pa.list_(pa.string())

Row = tuple[str, str]


def _write(directory: Path, *files: list[Row]) -> Path:
    """A split of hand-written rows, each (inputs, labels)."""
    directory.mkdir()
    for number, rows in enumerate(files):
        columns = {
            "char": pa.array([list(chars) for chars, _ in rows], LISTS),
            "next_char": pa.array([list(labels) for _, labels in rows], LISTS),
        }
        pq.write_table(pa.table(columns), directory / f"{number}.parquet", row_group_size=2)
    return directory


def _shifted(*texts: str) -> list[Row]:
    return [(("\n" + text)[: len(text)], text) for text in texts]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("demo"), max_bytes=100_000)


# --- by hand


def test_order0_is_the_add_one_cross_entropy(tmp_path: Path) -> None:
    train = read_symbols(_write(tmp_path / "train", [("\naa", "aab")]))
    test = read_symbols(_write(tmp_path / "test", [("\nab", "abc")]))
    # n(a)=2, n(b)=1, N=3: a (2+1)/(3+98), b (1+1)/(3+98), c 1/(3+98)
    expected = -(math.log2(3 / 101) + math.log2(2 / 101) + math.log2(1 / 101)) / 3
    assert order0_bits(train, test) == pytest.approx(expected, rel=1e-12)


def test_order2_is_the_witten_bell_interpolation(tmp_path: Path) -> None:
    train = read_symbols(_write(tmp_path / "train", [("\nab", "aba")]))
    test = read_symbols(_write(tmp_path / "test", [("\nac", "abb")]))
    p0_a, p0_b = Fraction(3, 101), Fraction(2, 101)
    # Row start, input "\n": seen once, before a.
    first = (1 + 1 * p0_a) / (1 + 1)
    # Inputs "\n", "a": seen once, before b; "a" alone: seen once, before b.
    p1_b = (1 + 1 * p0_b) / (1 + 1)
    second = (1 + 1 * p1_b) / (1 + 1)
    # Inputs "a", "c": never seen, and "c" neither: the frequencies.
    third = p0_b
    expected = -sum(math.log2(p) for p in (first, second, third)) / 3
    assert order2_bits(train, test) == pytest.approx(expected, rel=1e-12)


def test_lzma_is_of_the_labels_alone_and_counts_characters(tmp_path: Path) -> None:
    split = read_symbols(_write(tmp_path / "test", _shifted("ab\ufffd", "c"), _shifted("d")))
    compressed = lzma.compress("ab\ufffdcd".encode(), preset=9 | lzma.PRESET_EXTREME)
    assert lzma_bits(split) == 8 * len(compressed) / 5


# --- against a slow reference


def _slow_bits(train: list[Row], test: list[Row]) -> tuple[float, float]:
    """(order 0, order 2), a label at a time, with contexts as strings of 0 to 2 symbols."""
    counts: dict[int, Counter[tuple[str, str]]] = {0: Counter(), 1: Counter(), 2: Counter()}
    for chars, labels in train:
        for t, label in enumerate(labels):
            for order in range(min(t + 1, 2) + 1):
                counts[order][chars[t + 1 - order : t + 1], label] += 1
    seen: Counter[str] = Counter()
    different: Counter[str] = Counter()
    for of_order in counts.values():
        for (context, _), count in of_order.items():
            seen[context] += count
            different[context] += 1

    def chance(context: str, label: str) -> float:
        if not context:
            return (counts[0]["", label] + 1) / (seen[""] + V)
        lower = chance(context[1:], label)
        if not seen[context]:
            return lower
        count = counts[len(context)][context, label]
        return (count + different[context] * lower) / (seen[context] + different[context])

    places = [(chars, t, label) for chars, labels in test for t, label in enumerate(labels)]
    order0 = -sum(math.log2(chance("", label)) for _, _, label in places) / len(places)
    order2 = -sum(math.log2(chance(chars[max(t - 1, 0) : t + 1], label)) for chars, t, label in places)
    return order0, order2 / len(places)


@pytest.mark.parametrize("seed", range(3))
def test_the_arrays_count_what_the_slow_loop_counts(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)

    def rows(count: int, letters: str) -> list[Row]:
        lengths = generator.integers(0, 30, size=count)  # with rows of no step, also at either end
        lengths[[0, -1]] = 0
        return _shifted(*("".join(generator.choice(list(letters), n)) for n in lengths))

    train, test = rows(40, "aab\n"), rows(20, "abc\n\ufffd")
    order0, order2 = _slow_bits(train, test)
    fast = baselines(_write(tmp_path / "train", train[:7], train[7:]), _write(tmp_path / "test", test))
    assert fast.order0 == pytest.approx(order0, rel=1e-12)
    assert fast.order2 == pytest.approx(order2, rel=1e-12)
    assert fast.labels == sum(len(labels) for _, labels in test)


def test_the_arrays_count_what_the_slow_loop_counts_on_the_corpus(corpus: DemoData) -> None:
    def rows(split: str) -> list[Row]:
        table = pq.read_table(corpus.directory / split).to_pylist()
        return [("".join(row["char"]), "".join(row["next_char"])) for row in table]

    order0, order2 = _slow_bits(rows("train"), rows("test"))
    fast = baselines(corpus.train.path, corpus.test.path)
    assert (fast.order0, fast.order2) == pytest.approx((order0, order2), rel=1e-9)


# --- what they must be


def test_more_context_costs_fewer_bits_on_real_code(corpus: DemoData) -> None:
    figures = baselines(corpus.train.path, corpus.test.path)
    assert figures.labels == corpus.test.characters
    assert 2 < figures.order2 < figures.order0 - 1 < math.log2(V) - 1
    assert 0 < figures.lzma < figures.order0


def test_a_text_seen_in_training_costs_less_than_one_that_was_not(tmp_path: Path) -> None:
    train = read_symbols(_write(tmp_path / "train", _shifted("abcabcabc" * 20)))
    other = read_symbols(_write(tmp_path / "other", _shifted("cbacbacba" * 20)))
    assert order2_bits(train, train) < 0.5 < order2_bits(train, other)


def test_the_bits_do_not_depend_on_which_row_stands_before_another(tmp_path: Path) -> None:
    rows = _shifted("abab", "ba", "\nabba", "b")
    order = [rows[i] for i in (2, 0, 3, 1)]
    one = baselines(_write(tmp_path / "train", rows), _write(tmp_path / "test", rows))
    other = baselines(_write(tmp_path / "train2", order), _write(tmp_path / "test2", order[:1], order[1:]))
    assert (one.order0, one.order2) == pytest.approx((other.order0, other.order2), rel=1e-12)


def test_the_answer_is_a_plain_record(tmp_path: Path) -> None:
    split = _write(tmp_path / "split", _shifted("ab"))
    answer = baselines(split, split)
    assert isinstance(answer, Baselines)
    assert answer.labels == 2
    assert all(type(bits) is float for bits in (answer.order0, answer.order2, answer.lzma))


# --- mistakes


@pytest.mark.parametrize("files", [0, 1])
def test_a_directory_without_labels_is_named(files: int, tmp_path: Path) -> None:
    directory = _write(tmp_path / "split", *([[("", "")]] * files))
    with pytest.raises(DataError) as caught:
        read_symbols(directory)
    assert str(caught.value) == (
        f"{directory}: the demo's baselines need labels, but {files} Parquet files here hold none; "
        "write the demo data first"
    )


def test_a_symbol_outside_the_alphabet_is_named(tmp_path: Path) -> None:
    directory = _write(tmp_path / "split", [("", ""), ("\na", "ab"), ("", ""), ("\né", "éa")])
    with pytest.raises(DataError) as caught:
        read_symbols(directory)
    assert str(caught.value) == (
        f"{directory / '0.parquet'}, row 3, column 'char': "
        "a symbol must be one of the demo's 98, but is 'é'; write the demo data anew"
    )


def test_lists_of_different_lengths_are_named(tmp_path: Path) -> None:
    directory = _write(tmp_path / "split", [("\na", "ab"), ("\na", "abc")])
    with pytest.raises(DataError) as caught:
        read_symbols(directory)
    assert str(caught.value) == (
        f"{directory / '0.parquet'}, row 1, column 'next_char': a label list must be as long as the row's "
        "char (2 symbols), but holds 3; mend the row"
    )
