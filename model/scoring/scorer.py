"""Scoring: rows and states in, predictions, next states and per-row errors out. Batch prediction and serving use it.

One bad row never fails or touches its batch-mates. Knows no HTTP, no Ray, no files but the bundle's.
B rows, T steps, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from model.batches.collate import MAX_PADDED_STEPS, bounded, collate, length_sorted
from model.batches.encode import encode_rows
from model.batches.encode_valid import encode_valid
from model.batches.encoded_rows import EncodedRows, concat
from model.bundle.bundle import Bundle, load_bundle
from model.config import ModelConfig
from model.errors import DataError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel, ProblemType
from model.network import heads
from model.state import StateSpec
from model.storage.filesystems import PathLike
from model.tables.arrow_lists import offsets_of

STEADY_ROWS = 16  # processors multiply fewer rows than these by other kernels, which round in another way


@dataclass(frozen=True)
class Scored:
    """Results in the order of the rows.

    `predictions` has a row each: `classes` (and `probabilities`), or `scores`; lists with one entry a step for
    multiple_value, null where the row is bad or (single_value) has no step. `state` holds float32 [B, numel] a
    component, zeros where the row is bad. `errors` says what is wrong with which row.
    """

    predictions: pa.Table
    state: tuple[np.ndarray, ...]
    errors: dict[int, DataError]


class Scorer:
    """A bundle ready to score tables."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu", probabilities: bool | None = None) -> None:
        self.config: ModelConfig = bundle.config
        self.columns: FittedColumns = bundle.columns
        self.label: FittedLabel = bundle.label
        self.metrics = bundle.metrics
        self.fingerprint = bundle.fingerprint
        self.network = bundle.network().to(device)
        self.state_spec: StateSpec = self.network.state_spec()
        self.input_schema: pa.Schema = self.columns.input_schema()
        self.probabilities = bundle.config.predict_probabilities if probabilities is None else probabilities

    @classmethod
    def load(cls, bundle: PathLike, *, device: str = "cpu", probabilities: bool | None = None) -> Scorer:
        """From a bundle directory; CheckpointError when it is damaged."""
        return cls(load_bundle(bundle), device=device, probabilities=probabilities)

    def score(self, table: pa.Table) -> Scored:
        """Scores a table that has the input columns and, optionally, all `rnn_cell_state_i` columns."""
        rows, good, errors = encode_valid(table, self._encode)
        predictions, state = self.score_rows(rows) if rows is not None else self._nothing()
        if not errors:
            return Scored(predictions, state, errors)
        place = np.full(table.num_rows, -1)
        place[good] = np.arange(len(good))
        back = pa.array(place, mask=place < 0)
        states = tuple(np.zeros((table.num_rows, part.shape[1]), np.float32) for part in state)
        for whole, part in zip(states, state, strict=True):
            whole[good] = part
        return Scored(predictions.take(back), states, errors)

    def _encode(self, table: pa.Table) -> EncodedRows:
        return encode_rows(table, self.columns, state_spec=self.state_spec)

    def _nothing(self) -> tuple[pa.Table, tuple[np.ndarray, ...]]:
        return self.to_arrow({}, np.zeros(0, np.int64)), self.state_spec.zeros(0)

    def score_rows(self, rows: EncodedRows, *, steady: bool = False) -> tuple[pa.Table, tuple[np.ndarray, ...]]:
        """Predictions and states of encoded rows, in their order.

        They are sorted by length and cut into batches of bounded padding; then the results are put back. What is
        `steady` has the same bits whichever rows it is computed with, on one processor, but for rows so long that 16
        of them exceed a batch.
        """
        if not len(rows):
            return self._nothing()
        rows, order = length_sorted(rows)
        parts = [self._steady(part) for part in _alike(rows)] if steady else [self._forward(p) for p in bounded(rows)]
        predictions = self.to_arrow(
            {name: np.concatenate([values[name] for values, _ in parts]) for name in parts[0][0]}, rows.lengths_B
        )
        states = tuple(np.concatenate(arrays) for arrays in zip(*(state for _, state in parts), strict=True))
        if order is None:
            return predictions, states
        back = np.argsort(order)
        return predictions.take(pa.array(back)), tuple(part[back] for part in states)

    def _steady(self, rows: EncodedRows) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """What `_forward` gives, computed beside rows that are thrown away.

        With as many more of the longest length, no product has few rows; with one that has no step, cells whose
        kernels differ for batches of one length take the other one.
        """
        if int(rows.lengths_B[-1]) * STEADY_ROWS > MAX_PADDED_STEPS:
            return self._forward(rows)
        last = len(rows) - 1
        longest = rows.take(np.full(STEADY_ROWS, last))
        one = rows.slice(last, last + 1)
        empty = replace(one, lengths_B=np.zeros_like(one.lengths_B), sequence=rows.slice(0, 0).sequence)
        predicted, state = self._forward(concat([rows, longest, empty]))
        count = int(rows.lengths_B.sum()) if self.label.per_step else len(rows)
        return {name: values[:count] for name, values in predicted.items()}, tuple(part[: len(rows)] for part in state)

    def _forward(self, rows: EncodedRows) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """Predictions, flat over the real steps (or one a row), and states [B, numel]."""
        batch = collate(rows).to(self.network.device, self.network.dtype)
        with torch.inference_mode():
            output = self.network(batch)
            predicted = heads.predict(self.label, output.logits, probabilities=self.probabilities)
        state = tuple(
            part.reshape(len(rows), component.numel).float().cpu().numpy()
            for part, component in zip(output.state, self.state_spec.components, strict=True)
        )
        if not self.label.per_step:
            return {name: values.cpu().numpy() for name, values in predicted.items()}, state
        real = np.arange(batch.padded_length)[None, :] < rows.lengths_B[:, None]
        return {name: values.cpu().numpy()[real] for name, values in predicted.items()}, state

    def to_arrow(self, predictions: dict[str, np.ndarray], lengths_B: np.ndarray) -> pa.Table:
        """Flat predictions as columns: class ids become the class values, steps become lists."""
        columns = {}
        for name in prediction_names(self.label, probabilities=self.probabilities):
            values = predictions.get(name)
            entries = self._entries(name, values)
            if self.label.per_step:
                columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets_of(lengths_B)), entries)
            else:
                columns[name] = entries.take(pa.array(np.arange(len(lengths_B)), mask=lengths_B == 0))
        return pa.table(columns)

    def _entries(self, name: str, values: np.ndarray | None) -> pa.Array:
        count = len(self.label.class_values)
        if name == "classes":
            return pa.array(self.label.class_values).take(pa.array(np.zeros(0, int) if values is None else values))
        flat = pa.array(np.zeros(0, np.float32) if values is None else values.reshape(-1).astype(np.float32))
        return pa.FixedSizeListArray.from_arrays(flat, count) if name == "probabilities" else flat


def _alike(rows: EncodedRows) -> Iterator[EncodedRows]:
    """Rows (sorted by length) in parts of bounded padding; cells compute one step by other kernels than several."""
    several = int(np.searchsorted(rows.lengths_B, 2))
    for part in (rows.slice(0, several), rows.slice(several, len(rows))):
        yield from bounded(part)


def prediction_names(label: FittedLabel, *, probabilities: bool) -> tuple[str, ...]:
    """The columns of predictions."""
    if label.problem_type is ProblemType.LINEAR_REGRESSION:
        return ("scores",)
    return ("classes", "probabilities") if probabilities else ("classes",)
