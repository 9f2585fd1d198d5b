"""The index of a partition: where its rows lie, whose they are, and how many rows of the same key come before each.

R rows, E entities (distinct keys). Knows no Ray, no torch, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from model.errors import DataError
from model.tables.arrow_lists import Array, plain
from model.tables.slices import SlicedRowGroup
from pipelines.predict.entity_keys import KeyTypes, key_bytes, key_text
from pipelines.predict.prediction import ORDER, block_of

ROW = "row"  # a row's place in its slice
KEY = "key:"  # prefix of key columns, so that none is taken for another column


@dataclass(frozen=True)
class Index:
    """Of each row, [R]: its slice, its place in the slice's batch, its row in the slice, its `sequence_index`, its key.

    `blocks` are what the slices belong to.
    """

    blocks: tuple[SlicedRowGroup, ...]
    slice_R: np.ndarray
    place_R: np.ndarray
    row_R: np.ndarray
    order_R: np.ndarray
    keys: dict[str, Array]

    @classmethod
    def of(cls, tables: Sequence[tuple[int, pa.Table]], blocks: tuple[SlicedRowGroup, ...], types: KeyTypes) -> Index:
        """Of the batches of one partition, each with the number of its slice."""
        batches = [table for _, table in tables]
        rows = [table.num_rows for table in batches]
        return cls(
            blocks=blocks,
            slice_R=np.repeat([number for number, _ in tables], rows).astype(np.int64),
            place_R=concatenated([np.arange(count) for count in rows]),
            row_R=concatenated([table.column(ROW).to_numpy() for table in batches]),
            order_R=concatenated([_order(table) for table in batches]),
            keys={name: _key(batches, name, kind) for name, kind in types.items()},
        )

    def __len__(self) -> int:
        return len(self.slice_R)

    def place(self, row: int) -> tuple[str, int]:
        """The file that holds a row, and which of its rows that is."""
        number = int(self.slice_R[row])
        block = block_of(self.blocks, number)
        return block.fragment.file, block.row_in_file(number, int(self.row_R[row]))


def concatenated(parts: list[np.ndarray]) -> np.ndarray:
    """Whole numbers of all parts, of which there may be none."""
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _order(table: pa.Table) -> np.ndarray:
    given = ORDER in table.column_names
    order: np.ndarray = table.column(ORDER).to_numpy() if given else np.zeros(table.num_rows, np.int64)
    return order


def _key(tables: Sequence[pa.Table], name: str, kind: pa.DataType) -> Array:
    arrays = [plain(table.column(f"{KEY}{name}")) for table in tables]
    return pa.concat_arrays(arrays) if arrays else pa.array([], kind)


@dataclass(frozen=True)
class Entities:
    """The distinct keys of a partition: those that have an initial state first, in its order, then by appearance.

    `entity_R` is the entity of each row of the data; `keys` are the entities' keys, [E] each.
    """

    entity_R: np.ndarray
    keys: dict[str, Array]

    @classmethod
    def of(cls, initial: Index, rows: Index) -> Entities:
        """From the indexes of initial states and data. DataError where a key has two initial states."""
        names = pa.concat_arrays([key_bytes(initial.keys), key_bytes(rows.keys)]).dictionary_encode()
        entities = names.indices.to_numpy().astype(np.int64)
        _refuse_duplicates(initial, entities[: len(initial)])
        entity_R = entities[len(initial) :]
        _, first = np.unique(entity_R, return_index=True)
        new = pa.array(first[entity_R[first] >= len(initial)])
        keys = {name: pa.concat_arrays([initial.keys[name], rows.keys[name].take(new)]) for name in rows.keys}
        return cls(entity_R, keys)

    def __len__(self) -> int:
        return len(next(iter(self.keys.values())))


def _refuse_duplicates(initial: Index, entities: np.ndarray) -> None:
    _, first = np.unique(entities, return_index=True)
    if len(first) == len(entities):
        return
    again = int(np.setdiff1d(np.arange(len(entities)), first)[0])
    before_file, before_row = initial.place(int(np.argmax(entities == entities[again])))
    file, row = initial.place(again)
    raise DataError(
        f"a key must have one state, but {key_text(initial.keys, again)} has another in {before_file}, row "
        f"{before_row}; keep one of them",
        file=file,
        row=row,
    )


def _sorted(index: Index, entity_R: np.ndarray) -> np.ndarray:
    """The rows, key by key in the order in which they are computed, [R]."""
    return np.lexsort((index.row_R, index.slice_R, index.order_R, entity_R))


def rounds(index: Index, entity_R: np.ndarray) -> np.ndarray:
    """How many rows of its key come before each row, [R]: by `sequence_index`, else as they lie in the files."""
    sorted_R = _sorted(index, entity_R)
    same = entity_R[sorted_R][1:] == entity_R[sorted_R][:-1]
    places = np.arange(len(index))
    begins = np.where(np.append(True, ~same)[: len(index)], places, 0)
    result = np.empty(len(index), np.int64)
    result[sorted_R] = places - np.maximum.accumulate(begins)
    return result


def refuse_ties(index: Index, entity_R: np.ndarray) -> None:
    """DataError where two rows of a key have the same `sequence_index`."""
    sorted_R = _sorted(index, entity_R)
    entity, order = entity_R[sorted_R], index.order_R[sorted_R]
    ties = np.flatnonzero((entity[1:] == entity[:-1]) & (order[1:] == order[:-1]))
    if not ties.size:
        return
    before, again = int(sorted_R[ties[0]]), int(sorted_R[ties[0] + 1])
    (before_file, before_row), (file, row) = index.place(before), index.place(again)
    raise DataError(
        f"rows of one key must differ in it, but {key_text(index.keys, again)} has {index.order_R[again]} in "
        f"{before_file}, row {before_row}, too",
        file=file,
        row=row,
        column=ORDER,
    )
