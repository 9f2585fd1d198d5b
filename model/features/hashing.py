"""The original's hashes: FarmHash fingerprints of single values, and how those of several values are crossed.

Only distinct values are hashed. Knows no columns, no torch.
"""

from __future__ import annotations

import farmhash  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa

from model.columns import Key
from model.tables import compute as pc
from model.tables.arrow_lists import Array

CROSS_SEED = 0xDECAFCAFFE
CROSS_STEP = np.uint64(0x9E3779B97F4A7800).view(np.int64)
CONCATENATE = np.uint64(0xC6A4A7935BD1E995)


def fingerprint(value: Key) -> int:
    """Fingerprint64 of a string's UTF-8, or of an integer's decimal text: 42 and "42" agree."""
    number: int = farmhash.fingerprint64(str(value).encode())
    return number


def fingerprints(keys: Array) -> np.ndarray:
    """`fingerprint` of each string or integer of a flat array, uint64 [n]; 0 for null."""
    coded = pc.dictionary_encode(keys)
    texts = coded.dictionary.cast(pa.string()).cast(pa.binary()).to_pylist()
    hashes = np.array([0, *map(farmhash.fingerprint64, texts)], np.uint64)
    places: np.ndarray = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    found: np.ndarray = hashes[places + 1]
    return found


def buckets_of(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """uint64 hashes to int32 ids in 0 … buckets − 1."""
    ids: np.ndarray = (hashes % np.uint64(buckets)).astype(np.int32)
    return ids


# Crossing -------------------------------------------------------------------------------------------------------


def cross_start(count: int, hash_key: int | None) -> np.ndarray:
    """uint64 [count]: what the first values are crossed with."""
    return np.full(count, CROSS_SEED if hash_key is None else hash_key % 2**64, np.uint64)


def cross(hashes: np.ndarray, values: np.ndarray, hash_key: int | None) -> np.ndarray:
    """The hashes so far crossed with one more value each: both uint64 [n], the value being a fingerprint or an integer.

    Without a hash key the original's first formula, a ^ (b + 0x9e3779b97f4a7800 + (a << 10) + (a >> 4)) on signed 64
    bits; with one its second, FingerprintCat64, which mixes better.
    """
    if hash_key is None:
        a, b = hashes.view(np.int64), values.view(np.int64)
        combined: np.ndarray = (a ^ (b + CROSS_STEP + (a << 10) + (a >> 4))).view(np.uint64)
        return combined
    mixed = (hashes ^ CONCATENATE) ^ (_mix(values * CONCATENATE) * CONCATENATE)
    return _mix(_mix(mixed * CONCATENATE) * CONCATENATE)


def _mix(values: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = values ^ (values >> np.uint64(47))
    return mixed
