"""Which rows train and which validate: a stable hash of a key, or of the row's place. Knows no files, no torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.settings import Settings
from model.tables import compute as pc
from model.tables.arrow_lists import Array, require_column


class SplitBy(Settings):
    """A validation split by a stable hash of the key's columns; of the row's place below `root` where there is no key.

    So the same data are split alike wherever they lie.
    """

    fraction: float
    key: str | tuple[str, ...] | None = None
    root: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it takes to split."""
        return () if self.key is None else (self.key,) if isinstance(self.key, str) else self.key


def training_rows(table: pa.Table, split: SplitBy, place: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Boolean [rows]: False for the `fraction` of keys (or rows, by their places) whose stable hash is smallest."""
    if split.key is None:
        places = range(table.num_rows) if rows is None else rows.tolist()
        hashes = _hashes(np.array([f"{place}#{row}" for row in places], object))
    else:
        hashes = key_hashes(table, split.columns)
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
