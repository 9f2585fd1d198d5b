r"""The yardsticks the demo's model is held against: bits per character over exactly the labels of a split.

order 0   the frequencies of the training labels, one added to each symbol of the alphabet:
              p0(y) = (n(y) + 1) / (N + V)
order 2   counts of the next symbol after the two inputs before it, in Witten-Bell interpolation with the
          orders below. With h a context, n its count and d(h) the number of different symbols seen after it:
              p1(y | x)    = (n(x, y)    + d(x)    p0(y))     / (n(x)    + d(x))
              p2(y | w, x) = (n(w, x, y) + d(w, x) p1(y | x)) / (n(w, x) + d(w, x))
          An unseen context leaves the order below as it is. It sees what a recurrent model sees: a row's
          first label has one input before it (order 1), and nothing reaches over from another row.
lzma      `lzma` (preset 9, extreme) on the test text alone: the labels of all rows, joined, as UTF-8.
          Nothing is trained before it, but it looks back over row ends and at all the files of the split.

All are over `data.ALPHABET`, whose every symbol has a chance above zero, so no label scores infinity.
Knows Parquet and counting. Knows no Ray, no torch, no model.

Shapes: N labels of a split, V symbols of the alphabet.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.errors import DataError
from pipelines.demo.data import ALPHABET

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

V = len(ALPHABET)


@dataclass(frozen=True)
class Symbols:
    """A split, row after row: the inputs and labels as places in ALPHABET, and which begin a row."""

    input_N: Ids
    label_N: Ids
    is_first_N: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Baselines:
    """Bits per character; `labels` is over how many of them."""

    order0: float
    order2: float
    lzma: float
    labels: int


def baselines(train_dir: str | Path, test_dir: str | Path) -> Baselines:
    """All three, fitted on the Parquet files of one directory and scored on those of the other."""
    train, test = read_symbols(train_dir), read_symbols(test_dir)
    return Baselines(order0_bits(train, test), order2_bits(train, test), lzma_bits(test), labels=len(test.label_N))


def order0_bits(train: Symbols, test: Symbols) -> float:
    return _mean_bits(_order0(train)[test.label_N])


def order2_bits(train: Symbols, test: Symbols) -> float:
    p0_V = _order0(train)
    pairs = _counts(train.input_N, train.label_N, contexts=V)
    p1_VV = _witten_bell(pairs, np.broadcast_to(p0_V, (V, V)))
    inner = ~train.is_first_N
    triples = _counts(_two_inputs(train)[inner], train.label_N[inner], contexts=V * V)
    # Row w * V + x backs off to row x, whatever w is.
    p2_WV = _witten_bell(triples, np.tile(p1_VV, (V, 1)))
    p_N = np.where(test.is_first_N, p1_VV[test.input_N, test.label_N], p2_WV[_two_inputs(test), test.label_N])
    return _mean_bits(p_N)


def lzma_bits(test: Symbols) -> float:
    text = "".join(np.array(ALPHABET)[test.label_N])
    compressed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    return 8 * len(compressed) / len(text)


def read_symbols(directory: str | Path) -> Symbols:
    """The columns `char` and `next_char` of every Parquet file in `directory`, in the files' order.

    DataError where there is no row, a symbol is not of the alphabet, or two lists differ in length.
    """
    files = sorted(Path(directory).glob("*.parquet"))
    parts = [_read_file(file) for file in files]
    if not sum(len(part.label_N) for part in parts):
        raise DataError(
            f"the demo's baselines need labels, but {len(files)} Parquet files here hold none; "
            "write the demo data first",
            file=str(directory),
        )
    return Symbols(
        np.concatenate([part.input_N for part in parts]),
        np.concatenate([part.label_N for part in parts]),
        np.concatenate([part.is_first_N for part in parts]),
    )


def _read_file(file: Path) -> Symbols:
    table = pq.read_table(file, columns=["char", "next_char"])
    input_N, input_lengths = _read_lists(table, "char", file)
    label_N, label_lengths = _read_lists(table, "next_char", file)
    unequal = np.flatnonzero(input_lengths != label_lengths)
    if len(unequal):
        row = int(unequal[0])
        raise DataError(
            f"a label list must be as long as the row's char ({input_lengths[row]} symbols), "
            f"but holds {label_lengths[row]}; mend the row",
            file=str(file),
            row=row,
            column="next_char",
        )
    starts = np.cumsum(label_lengths) - label_lengths
    is_first_N = np.zeros(len(label_N), dtype=np.bool_)
    is_first_N[starts[label_lengths > 0]] = True
    return Symbols(input_N, label_N, is_first_N)


def _read_lists(table: pa.Table, name: str, file: Path) -> tuple[Ids, Ids]:
    """The symbols' ids, and each row's length."""
    lists = table[name].combine_chunks()
    symbols = lists.flatten()
    ids = pc.index_in(symbols, value_set=pa.array(ALPHABET, pa.string()))
    lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
    if ids.null_count:
        place = ids.is_null().index(True).as_py()
        raise DataError(
            f"a symbol must be one of the demo's {V}, but is {symbols[place].as_py()!r}; write the demo data anew",
            file=str(file),
            row=int(np.searchsorted(np.cumsum(lengths), place, side="right")),
            column=name,
        )
    return ids.to_numpy().astype(np.int64), lengths


def _order0(train: Symbols) -> Floats:
    n_V = np.bincount(train.label_N, minlength=V) + 1.0
    return np.asarray(n_V / n_V.sum(), dtype=np.float64)


def _counts(context_N: Ids, label_N: Ids, *, contexts: int) -> Floats:
    flat = np.bincount(context_N * V + label_N, minlength=contexts * V)
    return flat.reshape(contexts, V).astype(np.float64)


def _witten_bell(counts: Floats, lower: Floats) -> Floats:
    """A row per context: its counts, and `lower` with the weight of how many different symbols it had."""
    different = np.count_nonzero(counts, axis=1, keepdims=True)
    total = counts.sum(axis=1, keepdims=True) + different
    return np.where(total > 0, (counts + different * lower) / np.maximum(total, 1.0), lower)


def _two_inputs(split: Symbols) -> Ids:
    """The context (input before, input) as one number; of no meaning where a row begins."""
    return np.roll(split.input_N, 1) * V + split.input_N


def _mean_bits(p_N: Floats) -> float:
    return float(-np.log2(p_N).mean())
