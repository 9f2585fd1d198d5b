"""Where keys occur: whether the rows of every key lie in one row group, in their order, so that none has to be moved.

    keys     of each block, the hashes of its keys and in which slices they begin and end, a file of partitions
    meet     of each partition of hashes, whether one of them is in two blocks

Told by hashes: equal keys have equal ones, so a key that is in two blocks is found in any case; two keys that share one
are taken for such a key, and cost a shuffle. A task holds some 50 bytes a row of a block, or the hashes of a partition.
Knows no Ray, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from model.errors import DecodeError
from model.storage import exists, join
from model.tables import compute as pc
from model.tables.slices import SlicedRowGroup, read_slices
from pipelines.predict.chain_index import concatenated
from pipelines.predict.entity_keys import hashes_of, key_bytes, key_columns, partitions_of
from pipelines.predict.prediction import ORDER, Chain, Prediction
from pipelines.predict.shuffle_files import metadata_of, read_batch, write_partitions

MOST_LOCAL_ROWS = 1 << 21  # of a row group: more would take too much memory where its keys are counted
OPEN_BYTES = 64 << 20  # of states that wait for the next rows of their keys, further on in a row group
OPEN, ORDERED = b"open", b"ordered"  # in the metadata of a block's keys
HASH, FIRST, LAST = "hash", "first", "last"


def keys_file(prediction: Prediction, block: SlicedRowGroup) -> str:
    """Where the keys of a block lie, parted by their hashes."""
    return join(prediction.work, f"keys-{block.first_slice:06d}.arrow")


@dataclass(frozen=True)
class KeySpans:
    """The distinct hashes of keys, sorted, and the numbers of the slices where their rows begin and end."""

    hashes: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, hash_R: np.ndarray, slice_R: np.ndarray) -> KeySpans:
        """Of rows in their order."""
        order = np.argsort(hash_R, kind="stable")
        hashes, starts = np.unique(hash_R[order], return_index=True)
        ends = np.append(starts[1:], len(order))[: len(starts)] - 1
        return cls(hashes, slice_R[order][starts], slice_R[order][ends])

    @classmethod
    def of_tables(cls, tables: list[pa.Table]) -> KeySpans:
        """Of what `LocateKeysTask` wrote, where no hash occurs twice."""
        hashes, first, last = (
            np.concatenate([table.column(name).to_numpy() for table in tables]) for name in (HASH, FIRST, LAST)
        )
        order = np.argsort(hashes)
        return cls(hashes[order], first[order], last[order])

    def places(self, hashes: np.ndarray) -> np.ndarray:
        """Where each of the hashes stands here; −1 where it does not."""
        if not len(self.hashes):
            return np.full(len(hashes), -1)
        found = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[found] == hashes, found, -1)

    def most_open(self) -> int:
        """How many keys have rows both before and after the end of a slice, at most."""
        if not len(self.hashes):
            return 0
        changes = np.zeros(int(self.last.max() - self.first.min()) + 1, np.int64)
        np.add.at(changes, self.first - self.first.min(), 1)
        np.add.at(changes, self.last - self.first.min(), -1)
        return int(np.cumsum(changes).max())

    def table(self) -> pa.Table:
        """As `of_tables` reads it."""
        return pa.table({HASH: self.hashes, FIRST: self.first, LAST: self.last})


class LocateKeysTask:
    """Writes where the keys of a block occur."""

    def __init__(self, prediction: Prediction) -> None:
        assert prediction.chain is not None
        self.prediction = prediction
        self.chain: Chain = prediction.chain

    def __call__(self, block: SlicedRowGroup) -> dict[str, int]:
        """How many keys go on beyond a slice, at most, and whether the rows of each lie in their order."""
        path = keys_file(self.prediction, block)
        if not exists(path):
            hash_R, slice_R, ordered = self._read(block)
            found = KeySpans.of(hash_R, slice_R)
            partition_B = partitions_of(found.hashes, self.chain.partitions)
            told = {OPEN: str(found.most_open()), ORDERED: str(int(ordered))}
            table = found.table().replace_schema_metadata(told)
            write_partitions(path, table, partition_B, self.chain.partitions)
        metadata = metadata_of(path)
        return {"open": int(metadata[OPEN]), "ordered": int(metadata[ORDERED])}

    def _read(self, block: SlicedRowGroup) -> tuple[np.ndarray, np.ndarray, bool]:
        """The hash of the key of each row that has one, its slice, and whether the rows of each hash are in order."""
        hashes, slices, orders = [np.zeros(0, np.uint64)], [], []
        columns = [*self.chain.keys, *([ORDER] if self.chain.ordered else [])]
        try:
            for number, table in read_slices(block, columns):
                table = table.drop_null()  # a row without key or index is bad: whoever scores says so
                hashes.append(hashes_of(key_bytes(key_columns(table, self.chain.keys))))
                slices.append(np.full(table.num_rows, number))
                if self.chain.ordered:
                    orders.append(pc.cast(table.column(ORDER), pa.int64()).to_numpy())
        except DecodeError as error:
            self.prediction.setting_aside.damaged(block, error)
            hashes, slices, orders = hashes[:1], [], []
        hash_R = np.concatenate(hashes)
        return hash_R, concatenated(slices), not self.chain.ordered or _rising(hash_R, concatenated(orders))


def _rising(hash_R: np.ndarray, order_R: np.ndarray) -> bool:
    """Whether, as the rows lie, each has a higher index than the one before of the same hash."""
    sorted_R = np.argsort(hash_R, kind="stable")
    hashes, orders = hash_R[sorted_R], order_R[sorted_R]
    return bool((orders[1:] > orders[:-1])[hashes[1:] == hashes[:-1]].all())


class KeysOverlapTask:
    """Whether a partition has a hash that is in two blocks."""

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction

    def __call__(self, partition: int) -> bool:
        prediction = self.prediction
        tables = [read_batch(keys_file(prediction, block), partition, [HASH]) for block in prediction.blocks]
        hashes = np.sort(np.concatenate([table.column(HASH).to_numpy() for table in tables]))
        return bool((hashes[1:] == hashes[:-1]).any())
