"""Which rows train and which validate: by a stable hash of a key or of the row's place, or by time.

Knows no files, no torch.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.settings import Settings
from model.tables import compute as pc
from model.tables.arrow_lists import Array, require_column


class SplitBy(Settings):
    """A validation split by a stable hash of the key's columns; of the row's place below `root` where there is no key.

    So the same data are split alike wherever they lie. With `time`, the rows (with a key, all rows of the keys) that
    begin at `since` or later validate; `late_keys` are the sorted hashes of these keys, as bytes.
    """

    fraction: float
    key: str | tuple[str, ...] | None = None
    root: str = ""
    time: str | None = None
    since: int | float | None = None
    late_keys: bytes | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The key's columns."""
        return () if self.key is None else (self.key,) if isinstance(self.key, str) else self.key

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it takes to split."""
        return self.keys if self.time is None or self.keys else (self.time,)


def training_rows(table: pa.Table, split: SplitBy, place: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Boolean [rows]: False for the `fraction` of keys (or rows, by their places) whose stable hash is smallest, or for
    what is late."""
    if split.late_keys is not None:
        return ~np.isin(key_hashes(table, split.keys), np.frombuffer(split.late_keys, np.uint64))
    if split.time is not None:
        return np.asarray(time_numbers(table, split.time) < split.since)
    if split.keys:
        hashes = key_hashes(table, split.keys)
    else:
        places = range(table.num_rows) if rows is None else rows.tolist()
        hashes = _hashes(np.array([f"{place}#{row}" for row in places], object))
    return np.asarray(hashes.astype(np.float64) / 2**64 >= split.fraction)


def key_hashes(table: pa.Table, key: tuple[str, ...]) -> np.ndarray:
    """A stable hash of each row's key, uint64."""
    texts = [_key_texts(require_column(table, name), name) for name in key]
    # Keys that hold a NUL themselves may meet others so; all that comes of it is that both stand on one side.
    joined = texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\0")
    return _hashes(joined.to_numpy(zero_copy_only=False))


def _hashes(keys: np.ndarray) -> np.ndarray:
    import pandas as pd  # takes as long to load as all the rest of this package; few need a split

    hashes: np.ndarray = pd.util.hash_array(keys, categorize=True)
    return hashes


def _key_texts(array: Array, name: str) -> Array:
    """Keys as Arrow writes them: int32 and int64 agree, and a null beside them changes nothing."""
    try:
        texts = array.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"a split key must be a string, a number or a time, but its type is {array.type}", column=name
        ) from error
    return texts.fill_null("")


def time_numbers(table: pa.Table, name: str) -> np.ndarray:
    """Times as numbers that compare in every file alike: microseconds since 1970, or plain numbers as they are."""
    array = require_column(table, name)
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        array = array.cast(pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None), safe=False)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(
            f"the time to split by must be a timestamp, a date or a number, but its type is {kind}; write it as one of "
            "these",
            column=name,
        )
    whole = not (pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_uint64(kind))
    known = array.is_valid().to_numpy(zero_copy_only=False)
    numbers: np.ndarray = array.cast(pa.int64() if whole else pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
    bad = ~known | np.isnan(numbers)
    if bad.any():
        raise DataError(
            f"the time to split by must be known in every row, but is missing in one; leave such rows out with "
            f'data.filter="`{name}` is not null"',
            row=int(np.argmax(bad)),
            column=name,
        )
    return numbers
