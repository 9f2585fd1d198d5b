"""The model as plain functions of tensors, in a form that `torch.export` and ONNX take: of steps, and of sequences.

Inputs are what columns become after their transform (floats and ids), lengths and states; outputs are predictions and
next states, whatever the prediction type. In the sequence graph each layer is ONNX's own operator, which stops at each
row's length; outside an export these operators compute nothing. Knows no files and no onnx package.
B sequences, T padded steps, D floats, K ids, U units; letters also name the dynamic dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from model.batches.collate import SequenceBatch
from model.bundle.bundle import Bundle
from model.columns import Weighted
from model.columns.config import source_of
from model.features.encoded import MISSING_ID, weights_key
from model.features.fitted_columns import FittedColumns, Group, iterate_sources
from model.features.labels import FittedLabel, ProblemType
from model.features.numeric import FittedNumeric
from model.network import heads
from model.network.cells import BasicRnnCell, Cell, GruCell, GruResetBeforeCell, LstmCell, State, flatten_state
from model.network.column_layers import ColumnLayer
from model.network.network import RnnNetwork
from model.prediction_keys import RNNKeys
from model.state import StateSpec

Tensor = torch.Tensor
Dims = tuple[int | str, ...]  # a name is a dynamic dimension
NEXT = "next_"  # before the name of a state, in the outputs


class Port(NamedTuple):
    """One input or output of a graph."""

    name: str
    dtype: str
    dims: Dims
    what: str = ""


class Feature(NamedTuple):
    """A source as an input: its key in the batch, its group, and whether K is dynamic."""

    key: str
    group: Group
    port: Port
    several: bool


def features_of(columns: FittedColumns, kind: Literal["sequence", "step"]) -> list[Feature]:
    """The inputs that columns become, in input order; a step has no dimension T."""
    found: list[Feature] = []
    taken: set[str] = {RNNKeys.SEQUENCE_LENGTH_KEY}

    def add(key: str, group: Group, name: str, dtype: str, width: int | str, what: str) -> None:
        name = key if name in taken else name  # two sources may read one column
        taken.add(name)
        lead: Dims = ("batch", "time") if group == "sequence" and kind == "sequence" else ("batch",)
        found.append(Feature(key, group, Port(name, dtype, (*lead, width), what), several=isinstance(width, str)))

    for group, key, column in iterate_sources(columns.columns):
        fitted, source = columns.sources[key], source_of(column)
        if isinstance(fitted, FittedNumeric):
            add(
                key,
                group,
                source.name,
                "float32",
                fitted.width,
                f"numbers, normalized as columns[{key!r}] says",
            )
            continue
        width: int | str = f"{source.name}_values" if fitted.several else 1
        name = source.source.name if isinstance(source, Weighted) else source.name
        add(key, group, name, "int64", width, f"ids 0 to {fitted.buckets - 1}, {MISSING_ID} for nothing")
        if isinstance(source, Weighted):
            add(weights_key(key), group, source.weights, "float32", width, f"weights of {name!r}, 0 for nothing")
    return found


class Graph(nn.Module):
    """What both graphs share: named ports, and tensors in their order."""

    kind: Literal["sequence", "step"]

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.network: RnnNetwork = bundle.network().to(torch.float32).requires_grad_(False)
        self.label: FittedLabel = bundle.label
        self.probabilities = bundle.config.predict_probabilities
        self.features = features_of(bundle.columns, self.kind)
        self.spec: StateSpec = self.network.state_spec()

    @property
    def states(self) -> list[Port]:
        """The states, as inputs."""
        components = self.spec.components
        return [Port(each.name, "float32", ("batch", *each.shape), "zeros at the start") for each in components]

    @property
    def inputs(self) -> list[Port]:
        """The inputs in order."""
        return [*(each.port for each in self.features), *self.states]

    @property
    def outputs(self) -> list[Port]:
        """Predictions and next states, in order."""
        lead: Dims = ("batch", "time") if self.kind == "sequence" and self.label.per_step else ("batch",)
        if self.label.problem_type is ProblemType.LINEAR_REGRESSION:
            predictions = [Port("scores", "float32", lead)]
        else:
            count = len(self.label.class_values)
            predictions = [
                Port("classes", "int64", lead, "places in the list of class values"),
                Port("probabilities", "float32", (*lead, count), "of the class values, in their order"),
            ]
        return [*predictions, *(Port(f"{NEXT}{port.name}", port.dtype, port.dims) for port in self.states)]

    def parts(self) -> list[ColumnLayer]:
        """The columns' representations, in input order."""
        return [*self.network.inputs.represents("sequence"), *self.network.inputs.represents("context")]

    def read(self, tensors: tuple[Tensor, ...]) -> tuple[dict[Group, dict[str, Tensor]], list[Tensor]]:
        """(values by group and source key with a dimension T, what follows them)."""
        groups: dict[Group, dict[str, Tensor]] = {"sequence": {}, "context": {}}
        for feature, values in zip(self.features, tensors, strict=False):
            if feature.several:  # one more than given, so that one value is no special case
                values = nn.functional.pad(values, (0, 1), value=0 if values.is_floating_point() else MISSING_ID)
            if feature.group == "sequence" and self.kind == "step":
                values = values.unsqueeze(1)
            groups[feature.group][feature.key] = values
        return groups, list(tensors[len(self.features) :])

    def input_BTD(self, groups: dict[Group, dict[str, Tensor]], lengths_B: Tensor) -> Tensor:
        """The network's input."""
        batch = SequenceBatch(lengths_B, lengths_B, groups["sequence"], groups["context"])
        x_BTD: Tensor = self.network.inputs(batch, torch.float32)
        return x_BTD

    def predict(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, ...]:
        """Predictions from the last layer's outputs, and the states."""
        logits = self.network.projection(x)
        predicted = heads.predict(self.label, logits, probabilities=self.probabilities)
        if "classes" in predicted:
            predicted["probabilities"] = heads.class_probabilities(self.label, logits)
        return (*(predicted[port.name] for port in self.outputs if port.name in predicted), *states)


class StepGraph(Graph):
    """One step of each row: any cell."""

    kind = "step"

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        groups, flat = self.read(tensors)
        x = self.input_BTD(groups, flat[0])[:, 0]
        after: list[Tensor] = []
        for cell in self.network.cells:
            x, state = cell.step(x, _nested(cell.zero_state(1), iter(flat[len(after) :])))
            after += flatten_state(state)
        return self.predict(x, after)


class SequenceGraph(Graph):
    """All steps of padded rows. Where a row has no step its prediction means nothing, and its state stays."""

    kind = "sequence"

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.layers = nn.ModuleList(Operator(cell) for cell in self.network.cells)

    @property
    def inputs(self) -> list[Port]:
        lengths = Port(RNNKeys.SEQUENCE_LENGTH_KEY, "int64", ("batch",), "real steps of each row, 0 to time")
        return [*(each.port for each in self.features), lengths, *self.states]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        groups, (lengths_B, *flat) = self.read(tensors)
        x_TBD = self.input_BTD(groups, lengths_B).transpose(0, 1)
        after: list[Tensor] = []
        for layer in self.layers:
            assert isinstance(layer, Operator)
            x_TBD, state = layer(x_TBD, lengths_B, flat[len(after) : len(after) + layer.states])
            after += state
        # An LSTM's state is c, h: h, the last of each layer's, is its output at the last real step.
        return self.predict(x_TBD.transpose(0, 1) if self.label.per_step else after[-1], after)


class Operator(nn.Module):
    """One layer as ONNX's operator. Its gates stand in another order than torch's."""

    W: Tensor
    R: Tensor
    B: Tensor

    def __init__(self, cell: Any) -> None:
        super().__init__()
        kind = type(cell)
        self.operator, order, self.attributes = OPERATORS[kind]
        self.states, self.units = (2 if kind is LstmCell else 1), cell.num_units
        hidden = getattr(cell, "bias_hh", torch.zeros_like(cell.bias))
        for name, rows in (("W", cell.weight_ih), ("R", cell.weight_hh)):
            self.register_buffer(name, _gates(rows, order).unsqueeze(0))
        self.register_buffer("B", torch.cat([_gates(cell.bias, order), _gates(hidden, order)]).unsqueeze(0))

    def forward(self, x_TBD: Tensor, lengths_B: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """(outputs [T, B, U], state after each row's last real step)."""
        initial = state[::-1]  # ONNX's order is h, c
        final = (1, x_TBD.shape[1], self.units)
        outputs, *last = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            [x_TBD, self.W, self.R, self.B, lengths_B.to(torch.int32), *(each.unsqueeze(0) for each in initial)],
            {"hidden_size": self.units, **self.attributes},
            dtypes=[torch.float32] * (1 + len(state)),
            shapes=[(x_TBD.shape[0], *final), *[final] * len(state)],
        )
        some = (lengths_B > 0).unsqueeze(1)  # onnxruntime gives zeros where a row has no step
        after = [torch.where(some, new[0], old) for new, old in zip(last, initial, strict=True)]
        return outputs[:, 0], after[::-1]


OPERATORS: Mapping[type[Cell], tuple[str, tuple[int, ...], dict[str, Any]]] = {
    BasicRnnCell: ("RNN", (0,), {}),
    LstmCell: ("LSTM", (0, 3, 1, 2), {}),  # i, f, g, o as i, o, f, c
    GruCell: ("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # r, z, n as z, r, h
    GruResetBeforeCell: ("GRU", (1, 0, 2), {"linear_before_reset": 0}),
}


def _nested(like: State, flat: Iterator[Tensor]) -> State:
    """Tensors, as many as there are in `like`, in its form."""
    return next(flat) if isinstance(like, Tensor) else tuple(_nested(part, flat) for part in like)


def has_operators(network: RnnNetwork) -> bool:
    """Whether ONNX has an operator for each layer."""
    return all(type(cell) in OPERATORS for cell in network.cells)


def _gates(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    """Rows of stacked gates [G · U, …] in another order of the gates."""
    parts = rows.detach().chunk(len(order))
    return torch.cat([parts[gate] for gate in order])
