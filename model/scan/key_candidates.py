"""Columns whose values look like those of an entity with several rows, from a sample: so that a split by rows is no
surprise. A guess, told as one. Knows no Ray, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from model.config import ModelConfig
from model.errors import DataError
from model.scan.needed_columns import read_columns
from model.tables.arrow_lists import is_list, plain, unnest
from model.tables.fragments import Fragment
from model.tables.parquet import read_footer, read_fragment

SEQUENCE_INDEX = "sequence_index"  # orders the pieces of an entity; see docs/data.md
KEY_NAME = re.compile(
    r"(^|_)(id|key|uuid|guid|user|entity|session|visitor|customer|account|client|member|player|patient|person|employee|"
    r"driver|machine|device|sensor|vehicle|card|household|merchant|store|host|email|phone|iban|vin)$",
    re.I,
)
MOST_FRAGMENTS = 8
MOST_ROWS = 20_000  # of a fragment
LEAST_VALUES = 20  # fewer are categories
REPEATED = 0.1  # of the rows share their value with another
AGREEMENT = 0.5  # of labels beyond chance, as Cohen's kappa, among rows that share a value


def key_like(fragments: Sequence[Fragment], config: ModelConfig) -> list[str]:
    """The scalar columns that look like keys of several rows each, in the files' order.

    Beside a sequence_index it is those with which it names a row. Without one, columns that the model reads are none;
    others are by their name, or if rows that share a value mostly share their label, too.
    """
    names = _scalars(fragments[0])
    index = SEQUENCE_INDEX in names
    used = {SEQUENCE_INDEX, *(() if index else read_columns(config)), config.label, config.weight}
    columns = [name for name in names if name not in used]
    if not columns:
        return []
    sample = _sample(fragments, [*columns, *([SEQUENCE_INDEX] if index else []), config.label])
    labels = _codes([_first_labels(table.column(config.label)) for table in sample])
    order = _codes([table.column(SEQUENCE_INDEX) for table in sample]) if index else None
    found = []
    for name in columns:
        codes = _codes([table.column(name) for table in sample])
        if _repeats(codes) and (
            _orders(codes, order) if order is not None else KEY_NAME.search(name) or _tells(codes, labels)
        ):
            found.append(name)
    return found


def _scalars(fragment: Fragment) -> list[str]:
    """The columns of integers and strings that a fragment has, its path's last."""
    schema = read_footer(fragment.file).schema.to_arrow_schema()
    partitions = [name for name, value in fragment.partitions if value is not None]
    return [field.name for field in schema if _may_be_key(field.type) and field.name not in partitions] + partitions


def _may_be_key(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _may_be_key(kind.value_type)
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(strings or pa.types.is_integer(kind))


def _sample(fragments: Sequence[Fragment], names: list[str]) -> list[pa.Table]:
    """Rows of a few fragments, evenly spread: rows of one entity may lie in any."""
    places = np.unique(np.linspace(0, len(fragments) - 1, min(MOST_FRAGMENTS, len(fragments))).astype(int))
    tables = []
    for place in places:
        try:
            table = read_fragment(fragments[place], names)
        except DataError:  # damaged: the scan tells of it
            continue
        if all(name in table.column_names for name in names):
            tables.append(table.select(names).slice(0, MOST_ROWS))
    return tables


def _codes(parts: Sequence[pa.ChunkedArray | pa.Array]) -> np.ndarray:
    """A number for each different value, −1 for null, over all parts; files may differ in width and encoding."""
    texts = [plain(part).cast(pa.string()) for part in parts]
    if not texts:
        return np.zeros(0, np.int64)
    indices = pa.concat_arrays(texts).dictionary_encode().indices
    codes: np.ndarray = indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _first_labels(column: pa.ChunkedArray) -> pa.Array:
    """The label of each row; of a list its first, null where there is none."""
    if not is_list(column.type):
        return plain(column)
    values, offsets = unnest(plain(column), "label")
    return values.take(pa.array(offsets[:-1], mask=np.diff(offsets) == 0))


def _repeats(codes: np.ndarray) -> bool:
    counts = np.bincount(codes[codes >= 0])
    return len(counts) > 1 and counts[counts > 1].sum() >= REPEATED * counts.sum()


def _orders(codes: np.ndarray, order: np.ndarray) -> bool:
    """Whether a value and a place in its order name a row, and most rows that are no first one have one before them."""
    pairs = len(np.unique(_joined(codes, order)))
    counts = np.bincount(codes[codes >= 0], minlength=1)
    later = order != np.bincount(order[order >= 0]).argmax()  # the commonest place is the first
    known = later & (codes >= 0)
    return pairs >= 0.99 * len(codes) and bool(known.any()) and float((counts[codes[known]] > 1).mean()) >= 0.5


def _tells(codes: np.ndarray, labels: np.ndarray) -> bool:
    """Whether rows that share a value share their label far more often than any two rows do."""
    known = (codes >= 0) & (labels >= 0)
    codes, labels = codes[known], labels[known]
    values = np.unique(codes)
    if len(values) < LEAST_VALUES:
        return False
    chance = _pairs(labels) / max(len(labels) * (len(labels) - 1) / 2, 1)
    both = _pairs(np.unique(_joined(codes, labels), return_inverse=True)[1])
    agreement = both / max(_pairs(codes), 1)
    return chance < 1 and (agreement - chance) / (1 - chance) >= AGREEMENT


def _joined(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A number for each pair of two."""
    joined: np.ndarray = (codes + 1) * (others.max(initial=0) + 2) + others + 1
    return joined


def _pairs(codes: np.ndarray) -> float:
    """Pairs of rows that share a value."""
    counts = np.bincount(codes).astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())
