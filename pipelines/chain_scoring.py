"""The scoring of a chained prediction: the rows of a key one after another, each from the state of the one before.

A partition holds all rows of its keys. Its rows are computed in rounds: round 0 is the first row of each key, round 1
the second … So the rows of a round are independent and make large batches, and most keys have one round. What is held
in memory is an index of the partition's rows (some 100 bytes a row), one state a key, and `chunk_rows` rows at a time:
a key whose rows fill a disk takes time, not memory. Knows no Ray; loads torch when it is made.

R rows of the partition, N rows of a chunk, E entities (distinct keys).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from model import row_transport
from model.registry import import_plugins
from model.rows import EncodedRows, concat
from model.storage import exists, write_bytes
from pipelines.appearing import parquet_output
from pipelines.blocks import Block
from pipelines.chain_index import KEY, ROW, Entities, Index, refuse_ties, rounds
from pipelines.chain_tasks import initial_file, result_schema, rows_file, scored_file, scored_marker
from pipelines.prediction import ORDER, Chain, Prediction
from pipelines.shuffle import batch_file, one_batch, read_batch

STATE_ROWS = 1 << 16  # of a row group in the files of states
States = tuple[np.ndarray, ...]  # float32 [E, numel] or [N, numel] a component


class ChainScorer:
    """Holds the model; scores a partition, writes its results and the final states of its keys."""

    def __init__(self, prediction: Prediction, *, device: str) -> None:
        from model.scoring import Scorer

        assert prediction.chain is not None
        import_plugins(prediction.plugins)
        self.prediction = prediction
        self.chain: Chain = prediction.chain
        self.scorer = Scorer.load(prediction.bundle, device=device, probabilities=prediction.probabilities)

    def __call__(self, partition: int) -> int:
        done = exists(self.chain.states_file(partition))
        if done and (self.chain.states_only or exists(scored_marker(self.prediction, partition))):
            return partition
        initial, state = self._initial(partition)
        index = self._index(partition)
        entities = Entities.of(initial, index)
        if self.chain.ordered:
            refuse_ties(index, entities.entity_R)
        state = tuple(_longer(part, len(entities)) for part in state)
        results = self._results(partition, index, entities.entity_R, state)
        if self.chain.states_only:
            for _ in results:
                pass  # its effect on `state` is all that is wanted
        else:
            self._write_results(partition, results)
        self._write_states(partition, entities, state)
        return partition

    def _initial(self, partition: int) -> tuple[Index, States]:
        """The initial states of the partition's keys and whose they are."""
        spec, blocks = self.prediction.state_spec, self.chain.state_blocks
        tables = [(n, read_batch(initial_file(self.prediction, n), partition)) for n in _slices(blocks)]
        if not tables:
            return Index.of([], blocks, self.chain.keys), spec.zeros(0)
        state = spec.from_arrow(pa.concat_tables([table.select(spec.names) for _, table in tables]))
        assert state is not None, "files of initial states have all components"
        return Index.of(tables, blocks, self.chain.keys), state

    def _index(self, partition: int) -> Index:
        columns = [ROW, *(f"{KEY}{name}" for name in self.chain.keys), *([ORDER] if self.chain.ordered else [])]
        blocks = self.prediction.blocks
        tables = [(n, read_batch(rows_file(self.prediction, n), partition, columns)) for n in _slices(blocks)]
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
            results = self._advance(encoded, round_R[rows_N], entity_R[rows_N], state)
            results = results.append_column(ROW, pa.array(index.row_R[rows_N])).combine_chunks()
            for number in np.unique(index.slice_R[rows_N]):
                yield int(number), results.filter(pa.array(index.slice_R[rows_N] == number))

    def _advance(self, rows: EncodedRows, round_N: np.ndarray, entity_N: np.ndarray, state: States) -> pa.Table:
        """Predictions and the state after each row; rows stand in the order of their rounds."""
        bounds = [0, *(np.flatnonzero(np.diff(round_N)) + 1), len(rows)]
        tables, after = [], []
        for first, last in pairwise(bounds):
            entities = entity_N[first:last]
            given = replace(rows.slice(first, last), state=tuple(part[entities] for part in state))
            predictions, states = self.scorer.score_rows(given)
            for part, values in zip(state, states, strict=True):
                part[entities] = values
            tables.append(predictions)
            after.append(states)
        spec = self.prediction.state_spec
        columns = spec.to_arrow([np.concatenate(parts) for parts in zip(*after, strict=True)])
        table = pa.concat_tables(tables)
        for field, column in zip(spec.arrow_fields(), columns, strict=True):
            table = table.append_column(field, column)
        return table

    def _gather(self, partition: int, index: Index, rows_N: np.ndarray) -> EncodedRows:
        """Encoded rows of the partition in the order of `rows_N`; each slice's batch is read once."""
        by_slice = np.argsort(index.slice_R[rows_N], kind="stable")
        slices = index.slice_R[rows_N][by_slice]
        parts = []
        for number in np.unique(slices):
            places = index.place_R[rows_N[by_slice[slices == number]]]
            batch = read_batch(rows_file(self.prediction, int(number)), partition)
            encoded = [name for name in batch.column_names if name != ORDER and not name.startswith(KEY)]
            parts.append(row_transport.from_arrow(batch.select(encoded).take(pa.array(places))))
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

    def _write_states(self, partition: int, entities: Entities, state: States) -> None:
        """The final states of all entities: those that went on today, and those that did not."""
        spec = self.prediction.state_spec
        keys = pa.table(entities.keys)
        with parquet_output(self.chain.states_file(partition), self.prediction.metadata) as output:
            for start in range(0, max(len(entities), 1), STATE_ROWS):
                table = keys.slice(start, STATE_ROWS)
                columns = spec.to_arrow([part[start : start + STATE_ROWS] for part in state])
                for field, column in zip(spec.arrow_fields(), columns, strict=True):
                    table = table.append_column(field, column)
                output.write(table)


def _slices(blocks: Sequence[Block]) -> range:
    return range(blocks[-1].first_slice + blocks[-1].slices if blocks else 0)


def _longer(state: np.ndarray, rows: int) -> np.ndarray:
    """A copy with zero states behind."""
    return np.concatenate([state, np.zeros((rows - len(state), state.shape[1]), np.float32)])
