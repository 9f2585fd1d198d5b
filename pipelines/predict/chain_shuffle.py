"""The light tasks of a chained prediction: rows go to those of their key, and results come back to where rows were.

    split      a block's slices, encoded, and the initial states' slices, each a file of partitions   (here)
    score      a partition: its keys' rows one after another, from state to state                     (chain_score)
    assemble   a block's results from all partitions, in the rows' order, as an output file           (here)

Each file appears whole and is not written again: a run that was stopped goes on where it was. Knows no Ray, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from model.batches import arrow_transport
from model.batches.encode import encode_rows
from model.batches.encode_valid import encode_valid
from model.batches.encoded_rows import EncodedRows
from model.errors import DataError, DecodeError
from model.registry import import_plugins
from model.storage import exists, join, read_bytes
from model.storage.atomic import parquet_output
from model.tables.arrow_lists import Array
from model.tables.slices import SlicedRowGroup, empty_slices, read_slices
from pipelines.predict.chain_index import KEY, ROW
from pipelines.predict.entity_keys import key_bytes, partitions_of, valid_key_columns
from pipelines.predict.prediction import ORDER, Chain, Prediction
from pipelines.predict.shuffle_files import metadata_of, read_batch, write_partitions

GOOD = b"good_rows"  # in a slice's metadata: how many rows results must come back for


def rows_file(prediction: Prediction, number: int) -> str:
    """Where slice `number` of the data lies, parted."""
    return join(prediction.work, f"rows-{number:06d}.arrow")


def initial_file(prediction: Prediction, number: int) -> str:
    """Where slice `number` of the initial states lies, parted."""
    return join(prediction.work, f"initial-{number:06d}.arrow")


def scored_file(prediction: Prediction, partition: int) -> str:
    """Where a partition's results lie, a batch for a slice."""
    return join(prediction.work, f"scored-{partition:05d}.arrow")


def scored_marker(prediction: Prediction, partition: int) -> str:
    """Written after a partition's results: the numbers of the slices that its batches belong to."""
    return join(prediction.work, f"scored-{partition:05d}.json")


def result_schema(prediction: Prediction) -> pa.Schema:
    """The columns of results on their way back."""
    return pa.schema([*prediction.predicted, *prediction.state_spec.arrow_fields(), pa.field(ROW, pa.int64())])


class SplitTask:
    """Parts the slices of a block: (False, block) of the data, (True, block) of the initial states."""

    def __init__(self, prediction: Prediction) -> None:
        assert prediction.chain is not None
        import_plugins(prediction.plugins)
        self.prediction = prediction
        self.chain: Chain = prediction.chain

    def __call__(self, item: tuple[bool, SlicedRowGroup]) -> int:
        initial, block = item
        name = initial_file if initial else rows_file
        paths = [name(self.prediction, block.first_slice + slice_) for slice_ in range(block.slices)]
        if not all(exists(path) for path in paths):
            split = self._split_states if initial else self._split_rows
            split(block, paths)
        return block.fragment.rows

    def _split_states(self, block: SlicedRowGroup, paths: Sequence[str]) -> None:
        """A damaged row group ends it: a key whose state is lost would begin anew, and nobody would see it."""
        columns = [*self.chain.keys, *self.prediction.state_spec.names]
        for (number, table), path in zip(read_slices(block, columns), paths, strict=True):
            if not exists(path):
                self._part_states(table, block, number, path)

    def _split_rows(self, block: SlicedRowGroup, paths: Sequence[str]) -> None:
        columns = _row_columns(self.prediction)
        self.prediction.setting_aside.begin(block)
        try:
            for (number, table), path in zip(read_slices(block, columns), paths, strict=True):
                if not exists(path):
                    self._part_rows(table, block, number, path)
        except DecodeError as error:
            self.prediction.setting_aside.damaged(block, error)
            for (number, table), path in zip(empty_slices(block, columns), paths, strict=True):
                self._part_rows(table, block, number, path)  # in order: the last is there when all are

    def _part_rows(self, table: pa.Table, block: SlicedRowGroup, number: int, path: str) -> None:
        rows, keys = _keyed_rows(self.prediction, table, block, number)
        encoded = arrow_transport.to_arrow(rows)
        for name, array in keys.items():
            encoded = encoded.append_column(f"{KEY}{name}", array)
        if self.chain.ordered:
            encoded = encoded.append_column(ORDER, table.column(ORDER).take(pa.array(rows.rows_B)).cast(pa.int64()))
        encoded = encoded.replace_schema_metadata({**encoded.schema.metadata, GOOD: str(len(rows))})
        partition_B = partitions_of(key_bytes(keys), self.chain.partitions)
        write_partitions(path, encoded, partition_B, self.chain.partitions)

    def _part_states(self, table: pa.Table, block: SlicedRowGroup, number: int, path: str) -> None:
        spec = self.prediction.state_spec
        keys, without = valid_key_columns(table, self.chain.keys)
        try:
            for error in without.values():
                raise error
            states = spec.from_arrow(table)
        except DataError as error:
            raise error.located(file=block.fragment.file, first_row=block.row_in_file(number)) from error.__cause__
        assert states is not None, "the footers were checked for all components"
        columns = {f"{KEY}{name}": array for name, array in keys.items()}
        columns |= dict(zip(spec.names, spec.to_arrow(states), strict=True))
        columns[ROW] = pa.array(np.arange(table.num_rows))
        partition_B = partitions_of(key_bytes(keys), self.chain.partitions)
        write_partitions(path, pa.table(columns), partition_B, self.chain.partitions)


def _row_columns(prediction: Prediction) -> list[str]:
    """The columns that `_keyed_rows` needs of the data."""
    assert prediction.chain is not None
    order = [ORDER] if prediction.chain.ordered else []
    kept = prediction.keep if prediction.setting_aside.on_bad_rows == "skip" else ()
    return [*prediction.inputs, *prediction.chain.keys, *order, *kept]


def _keyed_rows(
    prediction: Prediction, table: pa.Table, block: SlicedRowGroup, number: int
) -> tuple[EncodedRows, dict[str, Array]]:
    """The good rows of slice `number`, each with its place in it, and their keys; the others are set aside."""
    assert prediction.chain is not None

    def encode(part: pa.Table) -> EncodedRows:
        return encode_rows(part, prediction.columns)

    keys, without = valid_key_columns(table, prediction.chain.keys)
    encoded, places, errors = encode_valid(table, encode)
    errors |= without | (_without_order(table) if prediction.chain.ordered else {})
    prediction.setting_aside(table, errors, block, number)
    good = np.delete(np.arange(table.num_rows), list(errors))
    rows = replace(encode(table.slice(0, 0)) if encoded is None else encoded, rows_B=places)
    taken = {name: array.take(pa.array(good)) for name, array in keys.items()}
    return rows.take(np.searchsorted(places, good)), taken


def _without_order(table: pa.Table) -> dict[int, DataError]:
    rows = np.flatnonzero(table.column(ORDER).is_null().to_numpy())
    return {int(row): DataError("must not be null", row=int(row), column=ORDER) for row in rows}


class AssembleTask:
    """Writes the output file of a block: what was kept of its rows, with the results of all partitions."""

    def __init__(self, prediction: Prediction) -> None:
        assert prediction.chain is not None
        self.prediction = prediction
        partitions = range(prediction.chain.partitions)
        self.slices = [np.array(json.loads(read_bytes(scored_marker(prediction, part))), int) for part in partitions]

    def __call__(self, block: SlicedRowGroup) -> int:
        keep = self.prediction.keep
        damaged = self.prediction.setting_aside.is_damaged(block)
        slices = empty_slices(block, keep) if damaged else read_slices(block, keep)
        with parquet_output(join(self.prediction.output, block.name), self.prediction.metadata) as output:
            for number, table in slices:
                output.write(self._assembled(table, number))
        return block.fragment.rows

    def _assembled(self, table: pa.Table, number: int) -> pa.Table:
        results = pa.concat_tables([result_schema(self.prediction).empty_table(), *self._results(number)])
        results = results.take(pa.array(np.argsort(results.column(ROW).to_numpy())))
        good = int(metadata_of(rows_file(self.prediction, number))[GOOD])
        assert results.num_rows == good, f"slice {number} has {good} rows, but {results.num_rows} results"
        columns = {name: table.column(name).take(results.column(ROW)) for name in self.prediction.keep}
        return pa.table(columns | {name: results.column(name) for name in results.column_names if name != ROW})

    def _results(self, number: int) -> Iterator[pa.Table]:
        for partition, slices in enumerate(self.slices):
            for batch in np.flatnonzero(slices == number):
                yield read_batch(scored_file(self.prediction, partition), int(batch))
