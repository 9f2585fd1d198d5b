"""Ids from several columns of the data once they are fitted: weighted and crossed. Knows no torch, no files.

n entries; a *feature* is one of the values an entry holds in one of the columns that are crossed.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from model.errors import DataError
from model.features.categorical import FittedHashBucket, FittedIdentity, FittedVocabulary
from model.features.encoded import MISSING_ID, Encoded
from model.features.hashing import buckets_of, cross, cross_start, fingerprints
from model.features.numeric import FittedNumeric
from model.features.stats import keys_of
from model.settings import Settings
from model.tables import compute as pc
from model.tables.arrow_lists import Array, as_float32, is_list, numbers, offsets_of, owner, ranges, unnest

FittedPlain = Annotated[FittedVocabulary | FittedIdentity | FittedHashBucket, Field(discriminator="type")]


class FittedWeighted(Settings):
    """The ids of `source`, each with the number at the same place of column `weights`."""

    type: Literal["weighted"] = "weighted"
    source: FittedPlain
    weights: str

    @property
    def buckets(self) -> int:
        """Number of ids."""
        return self.source.buckets

    @property
    def several(self) -> bool:
        """Whether an entry may have several ids."""
        return self.source.several

    @property
    def entry_types(self) -> dict[str, pa.DataType]:
        """Arrow type of an entry of each data column, in the order `encode` takes them."""
        kind = pa.list_(pa.float32()) if self.source.several else pa.float32()
        return {**self.source.entry_types, self.weights: kind}

    def encode(self, ids: Array, weights: Array) -> Encoded:
        """Entries to ids and weights. DataError where an entry has more of the one than of the other, or no number."""
        if pa.types.is_null(ids.type) and is_list(weights.type):
            ids = ids.cast(pa.list_(pa.null()))
        elif pa.types.is_null(weights.type) and is_list(ids.type):
            weights = weights.cast(pa.list_(pa.null()))
        encoded = self.source.encode(ids)
        values, offsets = unnest(weights, self.weights) if is_list(weights.type) else (weights, None)
        self._check_nesting(encoded.offsets, offsets)
        found = as_float32(numbers(values, self.weights))
        bad = ~np.isfinite(found)
        if values.null_count:  # what is nothing needs no weight
            bad &= values.is_valid().to_numpy(zero_copy_only=False) | (encoded.values != MISSING_ID)
        if bad.any():
            place = int(np.argmax(bad))
            raise DataError(
                f"a weight must be a finite number, but is {values[place].as_py()}",
                row=place if offsets is None else owner(offsets, place),
                column=self.weights,
            )
        return Encoded(encoded.values, encoded.offsets, np.where(np.isfinite(found), found, np.float32(0)))

    def _check_nesting(self, ids: np.ndarray | None, weights: np.ndarray | None) -> None:
        if (ids is None) != (weights is None):
            one, other = ("a single weight", "lists") if weights is None else ("a list of weights", "single values")
            raise DataError(
                f"must be nested as {self.source.name!r} is, but holds {one} an entry where that holds {other}",
                column=self.weights,
            )
        if ids is None or weights is None:
            return
        wrong = np.diff(ids) != np.diff(weights)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"an entry must hold as many weights as {self.source.name!r} has values, but this one holds "
                f"{np.diff(weights)[row]} where that has {np.diff(ids)[row]}",
                row=row,
                column=self.weights,
            )


class Features(NamedTuple):
    """What entries contribute to a cross: entry i has the uint64 `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray


class FittedRaw(Settings):
    """A column crossed by its values themselves: fingerprints of strings, integers as they are; nothing for null."""

    type: Literal["raw"] = "raw"
    name: str
    several: bool = False
    integers: bool = False

    @property
    def entry_types(self) -> dict[str, pa.DataType]:
        """Arrow type of an entry of the data column."""
        kind = pa.int64() if self.integers else pa.string()
        return {self.name: pa.list_(kind) if self.several else kind}

    def features(self, entries: Array) -> Features:
        """The values that are there."""
        keys, offsets = keys_of(entries, self.name)
        if offsets is None:
            offsets = np.arange(len(keys) + 1)
        if pa.types.is_int64(keys.type):
            values = pc.fill_null(keys, 0).to_numpy(zero_copy_only=False).view(np.uint64)
        else:
            values = fingerprints(keys)
        if not keys.null_count:
            return Features(values, offsets)
        valid = keys.is_valid().to_numpy(zero_copy_only=False)
        return Features(values[valid], offsets_of(valid)[offsets])


class FittedIntervals(Settings):
    """A numeric column crossed by its intervals: with n boundaries, value d of an entry counts from d · (n + 1)."""

    type: Literal["intervals"] = "intervals"
    source: FittedNumeric
    boundaries: tuple[float, ...]

    @property
    def several(self) -> bool:
        """Whether an entry has several numbers."""
        return self.source.dimension > 1

    @property
    def entry_types(self) -> dict[str, pa.DataType]:
        """Arrow type of an entry of the data column."""
        return self.source.entry_types

    def features(self, entries: Array) -> Features:
        """One interval for each of an entry's values."""
        width = self.source.dimension
        values = self.source.encode(entries).values[:, :width]
        edges = np.array(self.boundaries, np.float32)
        intervals = np.searchsorted(edges, values, side="right") + np.arange(width) * (len(edges) + 1)
        return Features(intervals.reshape(-1).astype(np.uint64), np.arange(len(values) + 1) * width)


class FittedCrossed(Settings):
    """Ids are hashes, modulo `buckets`, of every combination of the parts' values in an entry."""

    type: Literal["crossed"] = "crossed"
    parts: tuple[Annotated[FittedRaw | FittedIntervals, Field(discriminator="type")], ...]
    buckets: int
    hash_key: int | None = None

    @property
    def several(self) -> bool:
        """Whether an entry may have several ids."""
        return any(part.several for part in self.parts)

    @property
    def entry_types(self) -> dict[str, pa.DataType]:
        """Arrow type of an entry of each data column, in the order `encode` takes them."""
        return {name: kind for part in self.parts for name, kind in part.entry_types.items()}

    def encode(self, *columns: Array) -> Encoded:
        """Entries to int32 ids; the values of the last part vary fastest. An entry where a part is null has none."""
        count = len(columns[0])
        hashes, entries = cross_start(count, self.hash_key), np.arange(count)
        for part, column in zip(self.parts, columns, strict=True):
            features = part.features(column)
            widths = np.diff(features.offsets)[entries]
            values = features.values[ranges(features.offsets, entries)]
            hashes, entries = cross(np.repeat(hashes, widths), values, self.hash_key), np.repeat(entries, widths)
        ids, widths = buckets_of(hashes, self.buckets), np.bincount(entries, minlength=count)
        if widths.max(initial=0) > 1:
            return Encoded(ids, offsets_of(widths))
        single = np.full(count, MISSING_ID, np.int32)
        single[entries] = ids
        return Encoded(single)
