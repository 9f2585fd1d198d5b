"""Categorical columns once they are fitted: entries to ids. Knows no torch, no files."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa

from model.columns import Key
from model.errors import DataError
from model.features.encoded import MISSING_ID, Encoded
from model.features.hashing import buckets_of, fingerprint, fingerprints
from model.features.stats import keys_of
from model.settings import Settings
from model.tables import compute as pc
from model.tables.arrow_lists import Array


class FittedVocabulary(Settings):
    """Ids by position in `keys`; unknown values are hashed into the OOV buckets behind.

    Without OOV buckets they have the id `default_value`, −1 being nothing.
    """

    type: Literal["vocabulary"] = "vocabulary"
    name: str
    keys: tuple[Key, ...]
    oov_buckets: int = 1
    default_value: int = MISSING_ID
    several: bool = False

    @property
    def buckets(self) -> int:
        """Number of ids."""
        return len(self.keys) + self.oov_buckets

    @property
    def entry_types(self) -> dict[str, pa.DataType]:
        """Arrow type of an entry of each data column."""
        return {self.name: pa.list_(self.value_type) if self.several else self.value_type}

    @property
    def value_type(self) -> pa.DataType:
        """Arrow type of one value."""
        return self._key_array.type

    @cached_property
    def _key_array(self) -> Array:
        return pa.array(self.keys, pa.int64() if self.keys and isinstance(self.keys[0], int) else pa.string())

    @cached_property
    def _id_of(self) -> dict[Key, int]:
        return {key: i for i, key in enumerate(self.keys)}

    def encode(self, entries: Array) -> Encoded:
        """Entries to int32 ids; null is −1. DataError where strings meet integer keys or the other way."""
        keys, offsets = keys_of(entries, self.name)
        if keys.null_count == len(keys):
            return Encoded(np.full(len(keys), MISSING_ID, np.int32), offsets)
        if self.keys and keys.type != self._key_array.type:
            raise DataError(
                f"must hold values of type {self._key_array.type} as its vocabulary does, but holds {keys.type}",
                column=self.name,
            )
        ids = self._lookup(keys)
        unknown = ids < 0
        if (self.oov_buckets or self.default_value >= 0) and unknown.any():
            valid = keys.is_valid().to_numpy(zero_copy_only=False)
            self._give_ids(ids, unknown & valid, keys)
        return Encoded(ids, offsets)

    def _give_ids(self, ids: np.ndarray, unknown: np.ndarray, keys: Array) -> None:
        """Gives unknown keys their ids, in place."""
        if self.oov_buckets < 2:
            ids[unknown] = len(self.keys) if self.oov_buckets else self.default_value
        else:
            hashes = fingerprints(keys.filter(pa.array(unknown)))
            ids[unknown] = len(self.keys) + buckets_of(hashes, self.oov_buckets)

    def unknown_id(self, key: Key) -> int:
        """The id of a key that is not in the vocabulary."""
        if self.oov_buckets < 2:
            return len(self.keys) if self.oov_buckets else self.default_value
        return len(self.keys) + fingerprint(key) % self.oov_buckets

    def _lookup(self, keys: Array) -> np.ndarray:
        if not self.keys:
            return np.full(len(keys), MISSING_ID, np.int32)
        if len(keys) * 8 < len(self.keys):  # index_in hashes the whole vocabulary anew at each call
            return np.array([self._id_of.get(key, MISSING_ID) for key in keys.to_pylist()], np.int32)
        found = pc.fill_null(pc.index_in(keys, value_set=self._key_array), MISSING_ID)
        ids: np.ndarray = found.to_numpy(zero_copy_only=False)
        return ids.astype(np.int32)


class FittedIdentity(Settings):
    """Ids are the integers themselves modulo `buckets` (Python's sign rule); null is −1."""

    type: Literal["identity"] = "identity"
    name: str
    buckets: int
    several: bool = False

    @property
    def entry_types(self) -> dict[str, pa.DataType]:
        """Arrow type of an entry of each data column."""
        return {self.name: pa.list_(self.value_type) if self.several else self.value_type}

    @property
    def value_type(self) -> pa.DataType:
        """Arrow type of one value."""
        return pa.int64()

    def encode(self, entries: Array) -> Encoded:
        """Entries to int32 ids in 0 … buckets − 1, or −1 for null."""
        keys, offsets = keys_of(entries, self.name)
        if not pa.types.is_int64(keys.type):
            raise DataError(f"must hold integers, but its type is {keys.type}", column=self.name)
        valid = keys.is_valid().to_numpy(zero_copy_only=False)
        values = pc.fill_null(keys, 0).to_numpy(zero_copy_only=False)
        return Encoded(np.where(valid, values % self.buckets, MISSING_ID).astype(np.int32), offsets)


class FittedHashBucket(Settings):
    """Ids are Fingerprint64 of the text modulo `buckets`; null is −1. `integers` is what the training data hold."""

    type: Literal["hash_bucket"] = "hash_bucket"
    name: str
    buckets: int
    several: bool = False
    integers: bool = False

    @property
    def entry_types(self) -> dict[str, pa.DataType]:
        """Arrow type of an entry of each data column."""
        return {self.name: pa.list_(self.value_type) if self.several else self.value_type}

    @property
    def value_type(self) -> pa.DataType:
        """Arrow type of one value."""
        return pa.int64() if self.integers else pa.string()

    def encode(self, entries: Array) -> Encoded:
        """Entries, strings or integers, to int32 ids in 0 … buckets − 1, or −1 for null."""
        keys, offsets = keys_of(entries, self.name)
        ids = buckets_of(fingerprints(keys), self.buckets)
        if keys.null_count:
            ids[~keys.is_valid().to_numpy(zero_copy_only=False)] = MISSING_ID
        return Encoded(ids, offsets)
