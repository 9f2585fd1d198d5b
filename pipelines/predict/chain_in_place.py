"""A chained prediction whose rows stay where they are: no key has rows in two blocks (`chain_keys` finds out).

    given    a partition of the initial states, each to the slice where the rows of its key begin; the others are kept
    score    a block, slice by slice; keys whose rows go on in later slices hold their state till then

So only initial states travel, and what is held in memory is a slice and the states of such keys. Knows no Ray; loads
torch when it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from model.errors import DecodeError
from model.storage import exists, join
from model.storage.atomic import parquet_output
from model.tables.arrow_lists import Array, plain
from model.tables.slices import SlicedRowGroup, empty_slices, read_slices
from pipelines.predict.chain_index import KEY, Entities, Index
from pipelines.predict.chain_locality import KeySpans, keys_file
from pipelines.predict.chain_score import (
    ChainModel,
    States,
    advance,
    initial_states,
    longer,
    slices_of,
    with_states,
    write_states,
)
from pipelines.predict.chain_shuffle import keyed_rows, row_columns
from pipelines.predict.entity_keys import hashes_of, key_bytes
from pipelines.predict.prediction import Chain, Prediction
from pipelines.predict.shuffle_files import read_batch, write_partitions


def given_file(prediction: Prediction, partition: int) -> str:
    """Where a partition's initial states lie, a batch for each slice of the data."""
    return join(prediction.work, f"given-{partition:05d}.arrow")


class RouteStatesTask:
    """Parts the initial states of a partition by the slices that begin with them; writes those that none needs."""

    def __init__(self, prediction: Prediction) -> None:
        assert prediction.chain is not None
        self.prediction = prediction
        self.chain: Chain = prediction.chain

    def __call__(self, partition: int) -> int:
        path, untouched = given_file(self.prediction, partition), self.chain.untouched_file(partition)
        if exists(path) and exists(untouched):
            return partition
        initial, state = initial_states(self.prediction, partition)
        Entities.of(initial, Index.of([], (), self.chain.keys))  # refuses a key that has two states
        begin_E = self._begin(partition, key_bytes(initial.keys))
        kept = np.flatnonzero(begin_E < 0)
        keys = {name: array.take(pa.array(kept)) for name, array in initial.keys.items()}
        write_states(self.prediction, untouched, keys, tuple(part[kept] for part in state))
        table = with_states(
            pa.table({f"{KEY}{name}": array for name, array in initial.keys.items()}), self.prediction, state
        )
        needed = np.flatnonzero(begin_E >= 0)
        count = len(slices_of(self.prediction.blocks))
        write_partitions(path, table.take(pa.array(needed)), begin_E[needed], count)
        return partition

    def _begin(self, partition: int, names: Array) -> np.ndarray:
        """The slice where the rows of each key begin; −1 where it has none."""
        blocks = self.prediction.blocks
        rows = KeySpans.of_tables([read_batch(keys_file(self.prediction, block), partition) for block in blocks])
        places = rows.places(hashes_of(names))
        return np.where(places < 0, -1, np.append(rows.first, -1)[places])


@dataclass(frozen=True)
class OpenStates:
    """Keys, each once, with the states that they go on from."""

    keys: dict[str, Array]
    state: States

    def __len__(self) -> int:
        return len(next(iter(self.keys.values())))

    def take(self, places: np.ndarray) -> OpenStates:
        """Those at these places."""
        keys = {name: array.take(pa.array(places)) for name, array in self.keys.items()}
        return OpenStates(keys, tuple(part[places] for part in self.state))

    def and_those(self, other: OpenStates) -> OpenStates:
        """These and then the others, which are not among them."""
        keys = {name: pa.concat_arrays([array, other.keys[name]]) for name, array in self.keys.items()}
        states = zip(self.state, other.state, strict=True)
        return OpenStates(keys, tuple(np.concatenate(pair) for pair in states))

    def with_new(self, keys_R: dict[str, Array]) -> tuple[OpenStates, np.ndarray]:
        """These, then the other keys of some rows, which begin at zero; and where each row's key stands among them."""
        names = pa.concat_arrays([key_bytes(self.keys), key_bytes(keys_R)]).dictionary_encode()
        entity_R = names.indices.to_numpy().astype(np.int64)[len(self) :]
        _, first = np.unique(entity_R, return_index=True)
        new = pa.array(first[entity_R[first] >= len(self)])
        keys = {name: pa.concat_arrays([array, keys_R[name].take(new)]) for name, array in self.keys.items()}
        return OpenStates(keys, longer(self.state, len(names.dictionary))), entity_R


class InPlaceScorer(ChainModel):
    """Scores a block, writes its output file and the final states of its keys."""

    def __call__(self, item: tuple[int, SlicedRowGroup]) -> int:
        number, block = item
        states, output = self.chain.states_file(number), join(self.prediction.output, block.name)
        if exists(states) and (self.chain.states_only or exists(output)):
            return number
        columns = list(dict.fromkeys([*row_columns(self.prediction), *self.prediction.keep]))
        self.prediction.setting_aside.begin(block)
        try:
            self._write(block, states, output, read_slices(block, columns))
        except DecodeError as error:
            self.prediction.setting_aside.damaged(block, error)
            self._write(block, states, output, empty_slices(block, columns))
        return number

    def _write(self, block: SlicedRowGroup, states: str, output: str, slices: Iterator[tuple[int, pa.Table]]) -> None:
        with ExitStack() as stack:
            finals = stack.enter_context(parquet_output(states, self.prediction.metadata))
            rows = None
            if not self.chain.states_only:
                rows = stack.enter_context(parquet_output(output, self.prediction.metadata))
            for results, done in self._scored(block, slices):
                finals.write(with_states(pa.table(done.keys), self.prediction, done.state))
                if rows is not None:
                    rows.write(results)

    def _scored(
        self, block: SlicedRowGroup, slices: Iterator[tuple[int, pa.Table]]
    ) -> Iterator[tuple[pa.Table, OpenStates]]:
        """(results, keys that end with them and their states) of each slice."""
        last = self._occurrences(block)
        schema = pa.schema([*self.prediction.predicted, *self.prediction.state_spec.arrow_fields()])
        types, spec = self.chain.keys, self.prediction.state_spec
        held = OpenStates({name: pa.array([], kind) for name, kind in types.items()}, spec.zeros(0))
        for number, table in slices:
            rows, keys_R = keyed_rows(self.prediction, table, block, number)
            if self.chain.state_blocks:
                held = held.and_those(self._given(number))
            held, entity_R = held.with_new(keys_R)
            round_R = _rounds(entity_R)
            order = np.argsort(round_R, kind="stable")
            results = advance(self.scorer, rows.take(order), round_R[order], entity_R[order], held.state)
            results = results.take(pa.array(np.argsort(order)))
            kept = [table.column(name).take(pa.array(rows.rows_B)) for name in self.prediction.keep]
            columns = dict(zip(self.prediction.keep, kept, strict=True))
            columns |= dict(zip(results.column_names, results.cast(schema).columns, strict=True))
            places = last.places(hashes_of(key_bytes(held.keys)))
            ends = np.append(last.last, -1)[places] <= number
            yield pa.table(columns), held.take(np.flatnonzero(ends))
            held = held.take(np.flatnonzero(~ends))
        assert not len(held), "every key ends with a slice"

    def _occurrences(self, block: SlicedRowGroup) -> KeySpans:
        path = keys_file(self.prediction, block)
        return KeySpans.of_tables([read_batch(path, partition) for partition in range(self.chain.partitions)])

    def _given(self, number: int) -> OpenStates:
        """The initial states of the keys whose rows begin in a slice."""
        spec, partitions = self.prediction.state_spec, range(self.chain.partitions)
        table = pa.concat_tables(read_batch(given_file(self.prediction, part), number) for part in partitions)
        state = spec.from_arrow(table.select(spec.names))
        assert state is not None, "initial states have all components"
        return OpenStates({name: plain(table.column(f"{KEY}{name}")) for name in self.chain.keys}, state)


def _rounds(entity_R: np.ndarray) -> np.ndarray:
    """How many rows of its key come before each row, as they lie."""
    sorted_R = np.argsort(entity_R, kind="stable")
    entities = entity_R[sorted_R]
    places = np.arange(len(entities))
    rounds = np.empty(len(entities), np.int64)
    rounds[sorted_R] = places - np.searchsorted(entities, entities)
    return rounds
