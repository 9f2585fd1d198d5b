"""Which rows train and which validate: a stable hash of a key, or of the row's place. Knows no files, no torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.settings import Settings
from model.tables.arrow_lists import Array, require_column


class SplitBy(Settings):
    """A validation split by a stable hash of the key column; of the row's place below `root` where there is no key.

    So the same data are split alike wherever they lie.
    """

    fraction: float
    key: str | None = None
    root: str = ""


def training_rows(table: pa.Table, split: SplitBy, place: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Boolean [rows]: False for the `fraction` of keys (or rows, by their places) whose stable hash is smallest."""
    if split.key is None:
        places = range(table.num_rows) if rows is None else rows.tolist()
        keys = np.array([f"{place}#{row}" for row in places], object)
    else:
        keys = _key_texts(require_column(table, split.key), split.key)
    import pandas as pd  # takes as long to load as all the rest of this package; few need a split

    hashes = pd.util.hash_array(keys, categorize=True)
    return np.asarray(hashes.astype(np.float64) / 2**64 >= split.fraction)


def _key_texts(array: Array, name: str) -> np.ndarray:
    """Keys as Arrow writes them: int32 and int64 agree, and a null beside them changes nothing."""
    try:
        texts = array.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"a split key must be a string, a number or a time, but its type is {array.type}", column=name
        ) from error
    found: np.ndarray = texts.fill_null("").to_numpy(zero_copy_only=False)
    return found
