"""The scoring of a chained prediction: the rows of a key one after another, each from the state of the one before.

A partition holds all rows of its keys. Its rows are computed in rounds: round 0 is the first row of each key, round 1
the second … So the rows of a round are independent and make large batches, and most keys have one round. What is held
in memory is an index of the partition's rows (some 100 bytes a row), one state a key, and `chunk_rows` rows at a time:
a key whose rows fill a disk takes time, not memory. Knows no Ray; loads torch when it is made.

R rows of the partition, N rows of a chunk, E entities (distinct keys).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from model.batches import arrow_transport
from model.batches.encoded_rows import EncodedRows, concat
from model.registry import import_plugins
from model.storage import exists, write_bytes
from model.storage.atomic import parquet_output
from model.tables.arrow_lists import Array
from model.tables.slices import SlicedRowGroup
from pipelines.predict.chain_index import KEY, ROW, Entities, Index, refuse_ties, rounds
from pipelines.predict.chain_shuffle import initial_file, result_schema, rows_file, scored_file, scored_marker
from pipelines.predict.prediction import ORDER, Chain, Prediction
from pipelines.predict.shuffle_files import batch_file, one_batch, read_batch

if TYPE_CHECKING:
    from model.scoring.scorer import Scorer

STATE_ROWS = 1 << 16  # of a row group in the files of states
States = tuple[np.ndarray, ...]  # float32 [E, numel] or [N, numel] a component


class ChainScorer:
    """Scores a partition, writes its results and the final states of its keys."""

    def __init__(self, prediction: Prediction, *, device: str) -> None:
        from model.scoring.scorer import Scorer

        assert prediction.chain is not None
        import_plugins(prediction.plugins)
        self.prediction = prediction
        self.chain: Chain = prediction.chain
        self.scorer = Scorer.load(prediction.bundle, device=device, probabilities=prediction.probabilities)

    def __call__(self, partition: int) -> int:
        done = exists(self.chain.states_file(partition))
        if done and (self.chain.states_only or exists(scored_marker(self.prediction, partition))):
            return partition
        initial, state = initial_states(self.prediction, partition)
        index = self._index(partition)
        entities = Entities.of(initial, index)
        if self.chain.ordered:
            refuse_ties(index, entities.entity_R)
        state = longer(state, len(entities))
        results = self._results(partition, index, entities.entity_R, state)
        if self.chain.states_only:
            for _ in results:
                pass  # its effect on `state` is all that is wanted
        else:
            self._write_results(partition, results)
        write_states(self.prediction, self.chain.states_file(partition), entities.keys, state)
        return partition

    def _index(self, partition: int) -> Index:
        columns = [ROW, *(f"{KEY}{name}" for name in self.chain.keys), *([ORDER] if self.chain.ordered else [])]
        blocks = self.prediction.blocks
        tables = [(n, read_batch(rows_file(self.prediction, n), partition, columns)) for n in slices_of(blocks)]
        return Index.of(tables, blocks, self.chain.keys)

    def _results(
        self, partition: int, index: Index, entity_R: np.ndarray, state: States
    ) -> Iterator[tuple[int, pa.Table]]:
        """(slice, results of some of its rows), chunk by chunk in rounds. `state`, one an entity, goes on in place."""
        round_R = rounds(index, entity_R)
        order = np.lexsort((index.row_R, index.slice_R, round_R))
        for start in range(0, len(order), self.chain.chunk_rows):
            rows_N = order[start : start + self.chain.chunk_rows]
            encoded = self._gather(partition, index, rows_N)
            results = advance(self.scorer, encoded, round_R[rows_N], entity_R[rows_N], state)
            results = results.append_column(ROW, pa.array(index.row_R[rows_N])).combine_chunks()
            for number in np.unique(index.slice_R[rows_N]):
                yield int(number), results.filter(pa.array(index.slice_R[rows_N] == number))

    def _gather(self, partition: int, index: Index, rows_N: np.ndarray) -> EncodedRows:
        """Encoded rows of the partition in the order of `rows_N`; each slice's batch is read once."""
        by_slice = np.argsort(index.slice_R[rows_N], kind="stable")
        slices = index.slice_R[rows_N][by_slice]
        parts = []
        for number in np.unique(slices):
            places = index.place_R[rows_N[by_slice[slices == number]]]
            batch = read_batch(rows_file(self.prediction, int(number)), partition)
            encoded = [name for name in batch.column_names if name != ORDER and not name.startswith(KEY)]
            parts.append(arrow_transport.from_arrow(batch.select(encoded).take(pa.array(places))))
        return concat(parts).take(np.argsort(by_slice))

    def _write_results(self, partition: int, results: Iterator[tuple[int, pa.Table]]) -> None:
        """A batch for each slice that a chunk touches; then the marker, which says that all of it is there."""
        slices = []
        schema = result_schema(self.prediction)
        with batch_file(scored_file(self.prediction, partition), schema) as out:
            for number, table in results:
                out.write_batch(one_batch(table.select(schema.names).cast(schema)))
                slices.append(number)
        write_bytes(scored_marker(self.prediction, partition), json.dumps(slices).encode())


def advance(scorer: Scorer, rows: EncodedRows, round_N: np.ndarray, entity_N: np.ndarray, state: States) -> pa.Table:
    """Predictions and the state after each row; rows stand in the order of their rounds. `state` goes on in place."""
    bounds = [0, *(np.flatnonzero(np.diff(round_N)) + 1), len(rows)]
    tables, after = [], []
    for first, last in pairwise(bounds):
        entities = entity_N[first:last]
        given = replace(rows.slice(first, last), state=tuple(part[entities] for part in state))
        predictions, states = scorer.score_rows(given, steady=True)
        for part, values in zip(state, states, strict=True):
            part[entities] = values
        tables.append(predictions)
        after.append(states)
    return with_states(pa.concat_tables(tables), scorer, [np.concatenate(parts) for parts in zip(*after, strict=True)])


def with_states(table: pa.Table, scorer: Scorer | Prediction, state: Sequence[np.ndarray]) -> pa.Table:
    """The table with a state for each of its rows."""
    spec = scorer.state_spec
    for field, column in zip(spec.arrow_fields(), spec.to_arrow(state), strict=True):
        table = table.append_column(field, column)
    return table


def initial_states(prediction: Prediction, partition: int) -> tuple[Index, States]:
    """The initial states of a partition's keys and whose they are."""
    assert prediction.chain is not None
    spec, blocks, types = prediction.state_spec, prediction.chain.state_blocks, prediction.chain.keys
    tables = [(n, read_batch(initial_file(prediction, n), partition)) for n in slices_of(blocks)]
    if not tables:
        return Index.of([], blocks, types), spec.zeros(0)
    state = spec.from_arrow(pa.concat_tables([table.select(spec.names) for _, table in tables]))
    assert state is not None, "files of initial states have all components"
    return Index.of(tables, blocks, types), state


def write_states(prediction: Prediction, path: str, keys: Mapping[str, Array], state: States) -> None:
    """A file of final states, one a key."""
    table = pa.table(dict(keys))
    with parquet_output(path, prediction.metadata) as output:
        for start in range(0, max(table.num_rows, 1), STATE_ROWS):
            part = [component[start : start + STATE_ROWS] for component in state]
            output.write(with_states(table.slice(start, STATE_ROWS), prediction, part))


def slices_of(blocks: Sequence[SlicedRowGroup]) -> range:
    """The numbers of the slices of all blocks."""
    return range(blocks[-1].first_slice + blocks[-1].slices if blocks else 0)


def longer(state: States, rows: int) -> States:
    """Copies with zero states behind, `rows` in all."""
    return tuple(np.concatenate([part, np.zeros((rows - len(part), part.shape[1]), np.float32)]) for part in state)
