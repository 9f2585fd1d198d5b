"""Recurrent cells: the contract, the built-in cells on torch's fused kernels, and stacks of them.

B sequences, T padded steps, F input features, U units. A cell is two methods:

    state = cell.zero_state(B)
    for t in range(T):
        y_t, state = cell.step(x_BTF[:, t], state)

and `unroll` is that loop with the lengths obeyed: a row's state stops changing after its last real step. The
fused `unroll`s are tested against it. Knows no columns, no heads, no data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model.registry import registered_cell

Tensor = torch.Tensor
State = Any  # a tensor, or a (nested) tuple of states


class Cell(nn.Module):
    """The contract. A cell of your own subclasses this, sets `num_units` and defines the two methods.

    `zero_state(rows)` gives a state: a tensor [rows, …] or nested tuples of them, of any shapes.
    `step(x_BF, state)` gives (y_BU, next state) for one step of B rows; rows must not touch each other.
    """

    def __init__(self, input_size: int, num_units: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.num_units = num_units

    def zero_state(self, rows: int) -> State:
        """The state before the first step of `rows` sequences."""
        raise NotImplementedError

    def step(self, x_BF: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: output [B, U] and the next state."""
        raise NotImplementedError

    def unroll(self, x_BTF: Tensor, lengths_B: Tensor, state: State, *, keep_state: bool) -> tuple[Tensor, State]:
        """All steps: outputs [B, T, U] (at padded steps: unspecified) and each row's state after its last real step.

        `lengths_B` lies on the CPU. Without `keep_state` the returned state is unspecified, which lets fused cells
        skip what only the state needs.
        """
        lengths = lengths_B.to(x_BTF.device)
        outputs = []
        for t in range(x_BTF.shape[1]):
            y, after = self.step(x_BTF[:, t], state)
            state = select(t < lengths, after, state)
            outputs.append(y)
        if not outputs:
            return x_BTF.new_zeros(x_BTF.shape[0], 0, self.num_units), state
        return torch.stack(outputs, 1), state


class FusedCell(Cell):
    """What the three torch cells share: stacked gate weights [G·U, ·], one trainable bias, one constant one.

    Torch's kernels want two biases; a second trainable one would double the bias gradients and change the clip
    norm, so `bias_hh` is a constant (it holds the LSTM's forget bias).
    """

    gates = 1
    bias_hh: Tensor

    def __init__(self, input_size: int, num_units: int) -> None:
        super().__init__(input_size, num_units)
        rows = self.gates * num_units
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, num_units))
        self.bias = nn.Parameter(torch.zeros(rows))
        self.register_buffer("bias_hh", torch.zeros(rows), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot uniform over each of the original's kernels [F + U, columns], biases as the original's."""
        self._glorot(slice(None), self.gates * self.num_units)

    def _glorot(self, rows: slice, columns: int) -> None:
        limit = math.sqrt(6 / (self.input_size + self.num_units + columns))
        with torch.no_grad():
            self.weight_ih[rows].uniform_(-limit, limit)
            self.weight_hh[rows].uniform_(-limit, limit)

    def zero_state(self, rows: int) -> State:
        return self.bias.new_zeros(rows, self.num_units)

    @property
    def flat_weights(self) -> list[Tensor]:
        """The weights in the order torch's kernels take them."""
        return [self.weight_ih, self.weight_hh, self.bias, self.bias_hh]

    def kernel(self, x_BTF: Tensor, h_1BU: Tensor) -> tuple[Tensor, Tensor]:
        """Torch's fused kernel over all padded steps."""
        raise NotImplementedError

    def unroll(self, x_BTF: Tensor, lengths_B: Tensor, state: State, *, keep_state: bool) -> tuple[Tensor, State]:
        if x_BTF.shape[1] <= 1 or not len(x_BTF):
            return super().unroll(x_BTF, lengths_B, state, keep_state=keep_state)
        y_BTU, _ = self.kernel(x_BTF, state.unsqueeze(0).contiguous())
        # The output is the state, so the state after the last real step is a row of it.
        return y_BTU, last_step(y_BTU, lengths_B, state) if keep_state else state


class BasicRnnCell(FusedCell):
    """h' = tanh(W_ih x + W_hh h + b)."""

    def step(self, x_BF: Tensor, state: State) -> tuple[Tensor, State]:
        h = torch.rnn_tanh_cell(x_BF, state, self.weight_ih, self.weight_hh, self.bias, self.bias_hh)
        return h, h

    def kernel(self, x_BTF: Tensor, h_1BU: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rnn_tanh(x_BTF, h_1BU, self.flat_weights, True, 1, 0.0, False, False, True)


class GruCell(FusedCell):
    """r, z = σ(W x + U h + b); n = tanh(W_n x + b_n + r ∘ (U_n h)); h' = (1 − z) ∘ n + z ∘ h: torch's and cuDNN's."""

    gates = 3

    def reset_parameters(self) -> None:
        self._glorot(slice(0, 2 * self.num_units), 2 * self.num_units)
        self._glorot(slice(2 * self.num_units, None), self.num_units)
        with torch.no_grad():
            self.bias[: 2 * self.num_units] = 1.0

    def step(self, x_BF: Tensor, state: State) -> tuple[Tensor, State]:
        h = torch.gru_cell(x_BF, state, self.weight_ih, self.weight_hh, self.bias, self.bias_hh)
        return h, h

    def kernel(self, x_BTF: Tensor, h_1BU: Tensor) -> tuple[Tensor, Tensor]:
        return torch.gru(x_BTF, h_1BU, self.flat_weights, True, 1, 0.0, False, False, True)


class LstmCell(FusedCell):
    """i, f, g, o = W x + U h + b; c' = σ(f + 1) ∘ c + σ(i) ∘ tanh(g); h' = σ(o) ∘ tanh(c'). State (c, h)."""

    gates = 4

    def __init__(self, input_size: int, num_units: int) -> None:
        super().__init__(input_size, num_units)
        self.bias_hh[num_units : 2 * num_units] = 1.0  # the original's forget bias, added at run time

    def zero_state(self, rows: int) -> State:
        zeros = self.bias.new_zeros(rows, self.num_units)
        return (zeros, zeros)

    def step(self, x_BF: Tensor, state: State) -> tuple[Tensor, State]:
        c, h = state
        h, c = torch.lstm_cell(x_BF, (h, c), self.weight_ih, self.weight_hh, self.bias, self.bias_hh)
        return h, (c, h)

    def unroll(self, x_BTF: Tensor, lengths_B: Tensor, state: State, *, keep_state: bool) -> tuple[Tensor, State]:
        steps = x_BTF.shape[1]
        if steps <= 1 or not len(x_BTF):
            return Cell.unroll(self, x_BTF, lengths_B, state, keep_state=keep_state)
        c, h = state
        hx = [h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()]
        if not keep_state or int(lengths_B.min()) == steps:
            y_BTU, h_n, c_n = torch.lstm(x_BTF, hx, self.flat_weights, True, 1, 0.0, False, False, True)
            return y_BTU, (c_n[0], h_n[0])
        return self._unroll_packed(x_BTF, lengths_B, hx)

    def _unroll_packed(self, x_BTF: Tensor, lengths_B: Tensor, hx: list[Tensor]) -> tuple[Tensor, State]:
        """c is no output, so the kernel itself must stop at each row's end; it refuses length 0, so those step once
        over padding and get their state back."""
        order = torch.argsort(lengths_B, descending=True, stable=True)
        place = order.to(x_BTF.device)
        packed = nn.utils.rnn.pack_padded_sequence(x_BTF[place], lengths_B[order].clamp(min=1), batch_first=True)
        hx = [part[:, place] for part in hx]
        flat, h_n, c_n = torch.lstm(packed.data, packed.batch_sizes, hx, self.flat_weights, True, 1, 0.0, False, False)
        outputs = nn.utils.rnn.PackedSequence(flat, packed.batch_sizes)
        y, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=x_BTF.shape[1])
        empty = (lengths_B[order] == 0).to(x_BTF.device)
        final = select(~empty, (c_n[0], h_n[0]), (hx[1][0], hx[0][0]))
        back = torch.argsort(place)
        return y[back], (final[0][back], final[1][back])


class GruResetBeforeCell(Cell):
    """The original's GRU: r, u = σ([x, h] K + b); n = tanh([x, r ∘ h] K_c + b_c); h' = u ∘ h + (1 − u) ∘ n.

    The reset gate acts before the product with U_n, which no fused kernel of torch's offers.
    """

    def __init__(self, input_size: int, num_units: int) -> None:
        super().__init__(input_size, num_units)
        fused = GruCell(input_size, num_units)
        self.weight_ih = nn.Parameter(fused.weight_ih.detach())
        self.weight_hh = nn.Parameter(fused.weight_hh.detach())
        self.bias = nn.Parameter(fused.bias.detach())

    def zero_state(self, rows: int) -> State:
        return self.bias.new_zeros(rows, self.num_units)

    def step(self, x_BF: Tensor, state: State) -> tuple[Tensor, State]:
        return self._step(torch.addmm(self.bias, x_BF, self.weight_ih.t()), state)

    def _step(self, x_B3U: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        units = 2 * self.num_units
        gates = torch.addmm(x_B3U[:, :units], state, self.weight_hh[:units].t())
        r, u = torch.sigmoid(gates).chunk(2, 1)
        n = torch.tanh(torch.addmm(x_B3U[:, units:], r * state, self.weight_hh[units:].t()))
        h = torch.lerp(n.to(state.dtype), state, u.to(state.dtype))  # autocast's products are narrower than the state
        return h, h

    def unroll(self, x_BTF: Tensor, lengths_B: Tensor, state: State, *, keep_state: bool) -> tuple[Tensor, State]:
        """The loop of the contract with the input products of all steps taken together."""
        if x_BTF.shape[1] <= 1:
            return super().unroll(x_BTF, lengths_B, state, keep_state=keep_state)
        inputs = torch.nn.functional.linear(x_BTF, self.weight_ih, self.bias)
        outputs, h = [], state
        for x_B3U in inputs.unbind(1):
            _, h = self._step(x_B3U, h)
            outputs.append(h)
        y_BTU = torch.stack(outputs, 1)
        return y_BTU, last_step(y_BTU, lengths_B, state) if keep_state else state


_BUILT_IN: dict[str, type[Cell]] = {
    "basic_rnn": BasicRnnCell,
    "lstm": LstmCell,
    "gru": GruCell,
    "gru_reset_before": GruResetBeforeCell,
}


def build_cell(cell_type: str, input_size: int, num_units: int) -> Cell:
    """A cell by its name: built in, or registered. ConfigError for an unknown name."""
    cell_class = registered_cell(cell_type) or _BUILT_IN[cell_type]
    cell: Cell = cell_class(input_size, num_units)
    return cell


# States ---------------------------------------------------------------------------------------------------------


def last_step(y_BTU: Tensor, lengths_B: Tensor, initial_BU: Tensor) -> Tensor:
    """Row b of the result is y[b, lengths[b] − 1]; the initial state where the length is 0."""
    lengths = lengths_B.to(y_BTU.device)
    index = (lengths - 1).clamp(min=0)
    picked = y_BTU[torch.arange(len(y_BTU), device=y_BTU.device), index]
    return torch.where((lengths > 0).unsqueeze(1), picked, initial_BU)


def select(keep_B: Tensor, after: State, before: State) -> State:
    """`after` in the rows where `keep_B`, else `before`, through nested states."""
    if isinstance(after, tuple):
        return tuple(select(keep_B, a, b) for a, b in zip(after, before, strict=True))
    return torch.where(keep_B.view(-1, *[1] * (after.dim() - 1)), after, before)


def flatten_state(state: State) -> list[Tensor]:
    """The tensors of a nested state, depth first."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in flatten_state(part)]


def unflatten_state(like: State, flat: Sequence[Tensor]) -> State:
    """The inverse of `flatten_state`; each tensor is viewed in the shape it has in `like`."""
    tensors = iter(flat)

    def build(part: State) -> State:
        if isinstance(part, Tensor):
            tensor = next(tensors)
            return tensor.reshape(len(tensor), *part.shape[1:])
        return tuple(build(inner) for inner in part)

    return build(like)
