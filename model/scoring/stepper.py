"""One event at a time: features and state in, prediction and next state out, straight to each cell's `step`.

Its cost does not depend on what came before. Plain values are encoded without Arrow where that gives the same numbers
(a test compares), else by the fitted columns as tables are; ready tensors go to the cells as they are.
B rows, D input width, U units, K logits. Knows no files, no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.bundle.bundle import Bundle
from model.columns import Column, data_columns, source_key
from model.columns.config import source_of
from model.errors import DataError, StateError, first_line
from model.features.categorical import FittedHashBucket, FittedIdentity, FittedVocabulary
from model.features.encoded import Encoded
from model.features.fit import Fitted
from model.features.hashing import fingerprint
from model.features.numeric import FittedNumeric
from model.network import heads
from model.network.cells import Cell, State, flatten_state, unflatten_state
from model.network.column_layers import ColumnLayer
from model.state import from_mapping
from model.tables.arrow_lists import is_list, plain, widened
from model.tables.keys import key_type
from model.tables.schema_agreement import value_type

Tensor = torch.Tensor
Flat = tuple[Tensor, ...]
Quick = Callable[[Any], Tensor | None]  # a plain value as a tensor, or None where it is none of the plain ones


class Stepper:
    """A model ready to score single events, on the CPU."""

    def __init__(self, bundle: Bundle) -> None:
        self.label = bundle.label
        self.probabilities = bundle.config.predict_probabilities
        self.network = bundle.network().requires_grad_(False)  # spares a context manager a step
        self.spec = self.network.state_spec()
        self._weight, self._bias = self.network.projection.weight, self.network.projection.bias
        self._layers = _layers(self.network.cells)
        self._zero: Flat = tuple(flatten_state(self.network.zero_state(1)))
        self.columns = columns = bundle.columns
        groups = (columns.columns.ordered("sequence"), columns.columns.ordered("context"))
        parts = (*self.network.inputs.represents("sequence"), *self.network.inputs.represents("context"))
        self._inputs = [
            _Input(column, columns.sources[source_key(source_of(column))], part)
            for column, part in zip((column for group in groups for column in group), parts, strict=True)
        ]

    def tensors(self, x_BD: Tensor, state: Flat | None) -> tuple[Tensor, Flat]:
        """Logits [B, K] and the next state from network input [B, D] and flat state tensors (None: zeros)."""
        if state is None:
            state = self._zero if len(x_BD) == 1 else tuple(flatten_state(self.network.zero_state(len(x_BD))))
        elif len(state) != len(self._zero):
            raise StateError(f"a state must have {len(self._zero)} tensors, but has {len(state)}")
        after: list[Tensor] = []
        for step, nest, start, stop in self._layers:
            x_BD, following = step(x_BD, nest(state[start:stop]))
            after += flatten_state(following)
        return torch.nn.functional.linear(x_BD, self._weight, self._bias), tuple(after)

    def event(
        self, features: Mapping[str, Any], state: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One event of plain values. State arrays are flat float32; None or {} is the zero state."""
        logits, after = self.tensors(self.encode(features), self._state(state))
        predicted = heads.predict(self.label, logits, probabilities=self.probabilities)
        predictions = {name: self._value(name, values[0]) for name, values in predicted.items()}
        arrays = (part.reshape(-1).float().numpy() for part in after)
        return predictions, dict(zip(self.spec.names, arrays, strict=True))

    def encode(self, features: Mapping[str, Any]) -> Tensor:
        """An event's features as network input [1, D]. DataError names the feature that does not fit."""
        parts = [each.read(features) for each in self._inputs]
        x_1D = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return x_1D.to(self.network.dtype)

    def _state(self, state: Mapping[str, Any] | None) -> Flat | None:
        if not state:
            return None
        rows = {name: np.asarray(state[name])[None] for name in self.spec.names if name in state}
        arrays = from_mapping(self.spec, rows, 1)
        return None if arrays is None else tuple(torch.from_numpy(array).to(self.network.dtype) for array in arrays)

    def _value(self, name: str, value: Tensor) -> Any:
        if name == "probabilities":
            return value.numpy()
        return self.label.class_values[int(value)] if name == "classes" else value.item()


def _layers(cells: list[Cell]) -> list[tuple[Callable[[Tensor, State], Any], Callable[[Flat], State], int, int]]:
    """(step, how its state nests, where its tensors begin and end in the flat state) of each cell."""
    layers: list[tuple[Callable[[Tensor, State], Any], Callable[[Flat], State], int, int]] = []
    start = 0
    for cell in cells:
        zero = cell.zero_state(1)
        stop = start + len(flatten_state(zero))
        layers.append((cell.step, _nesting(zero), start, stop))
        start = stop
    return layers


def _nesting(zero: State) -> Callable[[Flat], State]:
    """From a cell's flat tensors to its state; the two common forms need no walk."""
    if isinstance(zero, Tensor) and zero.dim() == 2:
        return lambda flat: flat[0]
    if isinstance(zero, tuple) and all(isinstance(part, Tensor) and part.dim() == 2 for part in zero):
        return lambda flat: flat
    return lambda flat: unflatten_state(zero, flat)


class _Input:
    """One column: reads its features (one, or several for weighted and crossed ones) from an event as [1, width]."""

    def __init__(self, column: Column, fitted: Fitted, part: ColumnLayer) -> None:
        self.names = data_columns(source_of(column))
        self.fitted = fitted
        self.part = part
        self.quick: Quick | None = _quick(fitted)
        self.kinds = {name: widened(kind) for name, kind in fitted.entry_types.items()}

    def read(self, features: Mapping[str, Any]) -> Tensor:
        """The features' values as network input; DataError names the one that is missing or does not fit."""
        for name in self.names:
            if name not in features:
                raise DataError(f"is not in the event; its features are {', '.join(map(str, features))}", column=name)
        values = None if self.quick is None else self.quick(features[self.names[0]])
        if values is not None:
            return self.part.forward(values, torch.float32)
        encoded = self.fitted.encode(*(self._entry(name, features[name]) for name in self.names))
        return self.part.forward(*_tensors(encoded))

    def _entry(self, name: str, value: Any) -> pa.Array:
        """The value as an Arrow array of one entry."""
        kind = self.kinds[name]
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        if is_list(kind) and not isinstance(value, list | tuple | None):
            value = [value]  # one value where several are allowed
        try:
            held = plain(pa.array([value]))
            if value_type(kind) in (pa.int64(), pa.string()) and key_type(value_type(held.type)) == value_type(kind):
                return held  # Arrow would make 7 of 7.5
            return pa.array([value], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"must be of type {kind}, but: {first_line(error)}", column=name) from error


def _quick(fitted: Fitted) -> Quick | None:
    """What reads the common plain values of a column: finite numbers, or one key."""
    if isinstance(fitted, FittedNumeric):
        return lambda value: _numbers(fitted, value)
    if isinstance(fitted, FittedIdentity):
        return lambda value: _id(value % fitted.buckets) if type(value) is int else None
    if isinstance(fitted, FittedHashBucket):
        kind = int if fitted.integers else str
        return lambda value: _id(fingerprint(value) % fitted.buckets) if type(value) is kind else None
    return _key_reader(fitted) if isinstance(fitted, FittedVocabulary) else None


def _numbers(fitted: FittedNumeric, value: Any) -> Tensor | None:
    values = value if type(value) is list else [value]
    if len(values) != fitted.dimension or not all(type(v) in (float, int) and math.isfinite(v) for v in values):
        return None
    return torch.from_numpy(fitted.indicated(fitted.normalize(np.array([values], np.float64)), None))


def _key_reader(fitted: FittedVocabulary) -> Quick:
    ids = {key: i for i, key in enumerate(fitted.keys)}
    kind = type(fitted.keys[0]) if fitted.keys else str

    def read(value: Any) -> Tensor | None:
        if type(value) is not kind:
            return None
        known = ids.get(value)
        return _id(fitted.unknown_id(value) if known is None else known)

    return read


def _id(number: int) -> Tensor:
    return torch.tensor([[number]])


def _tensors(encoded: Encoded) -> tuple[Tensor, torch.dtype, Tensor | None]:
    """One entry as `ColumnLayer` takes it: floats [1, D], or ids [1, K] and, where they have some, their weights."""
    if encoded.values.ndim == 2:
        return torch.from_numpy(encoded.values), torch.float32, None
    weights = None if encoded.weights is None else torch.from_numpy(encoded.weights).unsqueeze(0)
    return torch.from_numpy(encoded.values.astype(np.int64)).unsqueeze(0), torch.float32, weights
