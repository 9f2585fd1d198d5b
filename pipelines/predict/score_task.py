"""What scores one row group after the other where each row stands for itself: the task of a plain prediction.

Knows no Ray; loads torch when it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from model.errors import DecodeError
from model.registry import import_plugins
from model.storage import join
from model.storage.atomic import parquet_output
from model.tables.parquet import read_footer
from model.tables.slices import SlicedRowGroup, empty_slices, read_slices
from pipelines.predict.bad_rows import good_rows

if TYPE_CHECKING:
    from pipelines.predict.prediction import Prediction


class RowPredictor:
    """Holds the model; scores the rows of a block and writes its output file, a row group a slice."""

    def __init__(self, prediction: Prediction, *, device: str) -> None:
        from model.scoring.scorer import Scorer

        import_plugins(prediction.plugins)
        self.prediction = prediction
        self.scorer = Scorer.load(prediction.bundle, device=device, probabilities=prediction.probabilities)

    def __call__(self, block: SlicedRowGroup) -> int:
        prediction = self.prediction
        available = read_footer(block.fragment.file).schema.to_arrow_schema().names
        states = [name for name in self.scorer.state_spec.names if name in available and prediction.reads_states]
        names = [*self.scorer.input_schema.names, *prediction.keep, *states]
        prediction.setting_aside.begin(block)
        try:
            self._write(block, read_slices(block, names))
        except DecodeError as error:
            prediction.setting_aside.damaged(block, error)
            self._write(block, empty_slices(block, names))
        return block.fragment.rows

    def _write(self, block: SlicedRowGroup, slices: Iterator[tuple[int, pa.Table]]) -> None:
        with parquet_output(join(self.prediction.output, block.name), self.prediction.metadata) as output:
            for number, table in slices:
                output.write(self._scored(table, block, number))

    def _scored(self, table: pa.Table, block: SlicedRowGroup, number: int) -> pa.Table:
        scored = self.scorer.score(table)
        self.prediction.setting_aside(table, scored.errors, block, number)
        columns = {name: table.column(name) for name in self.prediction.keep}
        columns |= {name: scored.predictions.column(name) for name in scored.predictions.column_names}
        states = self.scorer.state_spec.to_arrow(scored.state)
        columns |= dict(zip(self.scorer.state_spec.names, states, strict=True))
        whole = pa.table(columns)
        return whole.take(pa.array(good_rows(table.num_rows, scored.errors))) if scored.errors else whole
