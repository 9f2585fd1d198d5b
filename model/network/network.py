"""The network: columns → input [B, T, D] → stacked cells with dropout → projection to logits [B, T, K].

B sequences, T padded steps, D input width, U units of the last layer, K logits (1 for regression and two
classes, else the number of classes). Knows no labels, no losses, no data formats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from model.batches.collate import SequenceBatch
from model.config import ModelConfig
from model.features.fitted_columns import GROUPS, FittedColumns, Group
from model.features.labels import FittedLabel, ProblemType
from model.network.cells import Cell, State, build_cell, flatten_state, unflatten_state
from model.network.column_layers import ColumnLayer as Represent
from model.network.dropout import DropoutKey, drop
from model.network.pretrained import load_pretrained
from model.state import StateSpec

Tensor = torch.Tensor


class Output(NamedTuple):
    """Logits [B, T, K] (single value: [B, K]) and the state after each row's last real step."""

    logits: Tensor
    state: tuple[Tensor, ...]


class InputLayer(nn.Module):
    """All columns side by side: sequence columns, then context columns repeated at each step."""

    def __init__(self, columns: FittedColumns) -> None:
        super().__init__()
        shared: dict[str, nn.Parameter] = {}
        self.sequence = nn.ModuleList(Represent(c, columns, shared) for c in columns.columns.ordered("sequence"))
        self.context = nn.ModuleList(Represent(c, columns, shared) for c in columns.columns.ordered("context"))
        self.register_state_dict_post_hook(_each_table_once)  # type: ignore[no-untyped-call]

    @property
    def width(self) -> int:
        """D, the width of one step's input."""
        return sum(part.width for part in (*self.represents("sequence"), *self.represents("context")))

    def represents(self, group: Group) -> list[Represent]:
        """The columns of a group, typed."""
        return [part for part in getattr(self, group) if isinstance(part, Represent)]

    def forward(self, batch: SequenceBatch, dtype: torch.dtype) -> Tensor:
        parts = [part.read(batch.sequence, dtype) for part in self.represents("sequence")]
        steps = parts[0].shape[1]
        for part in self.represents("context"):
            context_BD = part.read(batch.context, dtype)
            parts.append(context_BD.unsqueeze(1).expand(-1, steps, -1))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _each_table_once(layer: nn.Module, tensors: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    """A shared table is saved under the name of the first column that has it."""
    assert isinstance(layer, InputLayer)
    for group in GROUPS:
        for i, part in enumerate(layer.represents(group)):
            if part.shares:
                del tensors[f"{prefix}{group}.{i}.weight"]


class RnnNetwork(nn.Module):
    """Maps a `SequenceBatch` to logits and next state; what training, scoring and export run."""

    def __init__(self, config: ModelConfig, columns: FittedColumns, label: FittedLabel) -> None:
        super().__init__()
        self.config = config
        self.per_step = label.per_step
        self.inputs = InputLayer(columns)
        widths = (self.inputs.width, *config.num_units)
        self.cell = nn.ModuleList(
            build_cell(config.cell_type, width, units) for width, units in zip(widths, config.num_units, strict=False)
        )
        self.projection = nn.Linear(config.num_units[-1], logit_count(label))
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.to(getattr(torch, config.dtype))

    @property
    def cells(self) -> list[Cell]:
        """The layers, typed."""
        return [cell for cell in self.cell if isinstance(cell, Cell)]

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of weights and activations."""
        return self.projection.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.projection.weight.device

    def zero_state(self, rows: int) -> tuple[State, ...]:
        """Each layer's state before the first step."""
        return tuple(cell.zero_state(rows) for cell in self.cells)

    def state_spec(self) -> StateSpec:
        """Names and shapes of the state's components, depth first."""
        return StateSpec.of([tuple(tensor.shape[1:]) for tensor in flatten_state(self.zero_state(1))])

    def forward(self, batch: SequenceBatch, *, keep_state: bool = True, dropout: DropoutKey | None = None) -> Output:
        """Logits and, with `keep_state`, the state after each row's last real step (else unspecified)."""
        states = self.initial_state(batch)
        x = self.inputs(batch, self.dtype)
        after = []
        for site, (cell, keep) in enumerate(zip(self.cells, self.config.keep_probabilities, strict=False)):
            x = drop(x, keep, site, dropout)
            x, state = cell.unroll(x, batch.lengths_B, states[site], keep_state=keep_state)
            after.append(state)
        x = drop(x, self.config.keep_probabilities[-1], len(self.cells), dropout)
        if not self.per_step:
            x = self._last(x, batch.lengths_B)
        return Output(self.projection(x), tuple(flatten_state(tuple(after))))

    def initial_state(self, batch: SequenceBatch) -> tuple[State, ...]:
        """The batch's states in the cells' nested form, or zeros."""
        zeros = self.zero_state(len(batch))
        if batch.state is None:
            return zeros
        state: tuple[State, ...] = unflatten_state(zeros, [part.to(self.dtype) for part in batch.state])
        return state

    @staticmethod
    def _last(x_BTU: Tensor, lengths_B: Tensor) -> Tensor:
        """Activations at each row's last real step; zeros where there is none."""
        if x_BTU.shape[1] == 0:
            return x_BTU.new_zeros(len(x_BTU), x_BTU.shape[2])
        index = (lengths_B.to(x_BTU.device) - 1).clamp(min=0)
        return x_BTU[torch.arange(len(x_BTU), device=x_BTU.device), index]


def state_spec_of(config: ModelConfig, input_width: int) -> StateSpec:
    """`RnnNetwork.state_spec` of a network whose steps are so wide, without making it."""
    widths = (input_width, *config.num_units)
    with torch.device("meta"):
        cells = [build_cell(config.cell_type, w, units) for w, units in zip(widths, config.num_units, strict=False)]
        state = flatten_state(tuple(cell.zero_state(1) for cell in cells))
    return StateSpec.of([tuple(tensor.shape[1:]) for tensor in state])


def logit_count(label: FittedLabel) -> int:
    """K: one logit for regression and for two classes, else one a class."""
    if label.problem_type is ProblemType.LINEAR_REGRESSION or label.num_classes == 2:
        return 1
    assert label.num_classes is not None, "a fitted classification label knows its classes"
    return label.num_classes


def build_network(
    config: ModelConfig, columns: FittedColumns, label: FittedLabel, seed: int, *, pretrained: bool = True
) -> RnnNetwork:
    """A network with initial weights that are a function of `seed` alone; torch's generator is left as it was.

    Tables with pretrained vectors hold these, unless `pretrained` is False: their weights come from elsewhere then.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RnnNetwork(config, columns, label)
    if pretrained:
        for group in GROUPS:
            for column, part in zip(columns.columns.ordered(group), network.inputs.represents(group), strict=True):
                load_pretrained(column, part)
    return network
