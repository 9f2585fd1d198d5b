"""Cells: each formula against numpy, and every fast path against the slow loop of the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ConfigError
from model.network.cells import Cell, GruResetBeforeCell, LstmCell, build_cell, flatten_state, select, unflatten_state
from model.registry import BUILT_IN_CELLS, import_plugins, register_cell, registered_cell

Tensor = torch.Tensor
F, U = 3, 4
RAGGED = [[5, 5, 5], [3, 5, 1], [0, 4, 0, 2], [0, 0], [1, 1], [1], [0], [7], []]


class NestedCell(Cell):
    """A cell of a user: its state nests a number a row, a vector and a matrix."""

    def __init__(self, input_size: int, num_units: int) -> None:
        super().__init__(input_size, num_units)
        self.inner = torch.nn.Linear(input_size + num_units, num_units)

    def zero_state(self, rows: int) -> Any:
        new = self.inner.weight.new_zeros
        return (new(rows), (new(rows, self.num_units), new(rows, self.num_units, 2)))

    def step(self, x_BF: Tensor, state: Any) -> tuple[Tensor, Any]:
        count, (h, trace) = state
        h = torch.tanh(self.inner(torch.cat([x_BF, h], 1)) + trace.sum(2) / (1 + count.unsqueeze(1)))
        return h, (count + 1, (h, torch.stack([h, trace[:, :, 0]], 2) / 2))


@pytest.fixture(autouse=True, scope="module")
def _registered(register: Any) -> None:
    register("nested_for_tests", NestedCell)


CELLS = (*BUILT_IN_CELLS, "nested_for_tests")


def cell_of(name: str, dtype: torch.dtype = torch.float64) -> Cell:
    torch.manual_seed(1)
    cell = build_cell(name, F, U).to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return cell


def inputs(rows: int, steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, steps, F, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def random_state(cell: Cell, rows: int) -> Any:
    generator = torch.Generator().manual_seed(3)
    zeros = cell.zero_state(rows)
    flat = [torch.randn(part.shape, generator=generator).to(part) / 2 for part in flatten_state(zeros)]
    return unflatten_state(zeros, flat)


def row_of(state: Any, row: int) -> Any:
    return tuple(row_of(part, row) for part in state) if isinstance(state, tuple) else state[row : row + 1]


def slow_loop(cell: Cell, x_BTF: Tensor, lengths: list[int], state: Any) -> tuple[list[Tensor], list[Any]]:
    """Each row alone, step by step: outputs [length, U] and the state after the last real step."""
    outputs, states = [], []
    for row, length in enumerate(lengths):
        here, ys = row_of(state, row), []
        for t in range(length):
            y, here = cell.step(x_BTF[row : row + 1, t], here)
            ys.append(y[0])
        outputs.append(torch.stack(ys) if ys else x_BTF.new_zeros(0, U))
        states.append(here)
    return outputs, states


def assert_rows(y_BTU: Tensor, state: Any, outputs: list[Tensor], states: list[Any], atol: float) -> None:
    for row, expected in enumerate(outputs):
        torch.testing.assert_close(y_BTU[row, : len(expected)], expected, atol=atol, rtol=0)
        found = flatten_state(row_of(state, row)) if state is not None else []
        for part, after in zip(found, flatten_state(states[row]), strict=False):
            torch.testing.assert_close(part, after, atol=atol, rtol=0)


@pytest.mark.parametrize("lengths", RAGGED, ids=str)
@pytest.mark.parametrize("start", ["zeros", "given"])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.float64, 1e-14)], ids=["32", "64"])
def test_unrolling_is_the_slow_loop(name: str, start: str, lengths: list[int], dtype: torch.dtype, atol: float) -> None:
    cell, rows = cell_of(name, dtype), len(lengths)
    x = inputs(rows, max(lengths, default=0) + 1, dtype)
    x[:, -1] = torch.nan  # padding reaches nobody
    state = cell.zero_state(rows) if start == "zeros" else random_state(cell, rows)
    with torch.no_grad():
        outputs, states = slow_loop(cell, x, lengths, state)
        y, after = cell.unroll(x, torch.tensor(lengths, dtype=torch.int64), state, keep_state=True)
        dropped, _ = cell.unroll(x, torch.tensor(lengths, dtype=torch.int64), state, keep_state=False)
    assert tuple(y.shape) == (rows, x.shape[1], U)
    assert_rows(y, after, outputs, states, atol)
    assert_rows(dropped, None, outputs, states, atol)


@pytest.mark.parametrize("name", CELLS)
def test_without_padding_the_state_is_the_last_steps(name: str) -> None:
    cell, x = cell_of(name), inputs(2, 4)
    with torch.no_grad():
        outputs, states = slow_loop(cell, x, [4, 4], random_state(cell, 2))
        y, after = cell.unroll(x, torch.tensor([4, 4]), random_state(cell, 2), keep_state=True)
    assert_rows(y, after, outputs, states, 1e-14)


@pytest.mark.parametrize("keep_state", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_gradients_are_those_of_the_slow_loop(name: str, keep_state: bool) -> None:
    lengths = [3, 0, 4, 1]
    cell, x = cell_of(name), inputs(4, 5)
    state = random_state(cell, 4)
    weight = torch.randn(4, 5, U, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def gradients(outputs: list[Tensor]) -> list[Tensor]:
        total = sum((output * weight[row, : len(output)]).sum() for row, output in enumerate(outputs))
        return list(torch.autograd.grad(total, list(cell.parameters())))

    y, _ = cell.unroll(x, torch.tensor(lengths), state, keep_state=keep_state)
    fast = gradients([y[row, :length] for row, length in enumerate(lengths)])
    slow = gradients(slow_loop(cell, x, lengths, state)[0])
    for mine, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-13, rtol=0)


@settings(max_examples=15)
@given(st.sampled_from(CELLS), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 6))
def test_splitting_and_passing_the_state_changes_nothing(name: str, lengths: list[int], at: int) -> None:
    cell, whole = cell_of(name), torch.tensor(lengths)
    x, start = inputs(len(lengths), 6), random_state(cell, len(lengths))
    first = whole.clamp(max=at)
    with torch.no_grad():
        y, after = cell.unroll(x, whole, start, keep_state=True)
        y_first, between = cell.unroll(x[:, :at], first, start, keep_state=True)
        y_second, end = cell.unroll(x[:, at:], whole - first, between, keep_state=True)
    for row, length in enumerate(lengths):
        joined = torch.cat([y_first, y_second], 1)[row, :length]
        torch.testing.assert_close(joined, y[row, :length], atol=1e-14, rtol=0)
    for part, expected in zip(flatten_state(end), flatten_state(after), strict=True):
        torch.testing.assert_close(part, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("lengths", [[4, 4], [3, 4]], ids=str)
@pytest.mark.parametrize("keep_state", [True, False])
@pytest.mark.parametrize("name", ["basic_rnn", "lstm", "gru"])
def test_sequences_take_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, name: str, keep_state: bool, lengths: list[int]
) -> None:
    cell = cell_of(name)
    monkeypatch.setattr(type(cell), "step", None)  # whoever goes step by step fails
    cell.unroll(inputs(2, 4), torch.tensor(lengths), cell.zero_state(2), keep_state=keep_state)


# Formulas -------------------------------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_formula(name: str, w: list[np.ndarray], x: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
    """The docstrings' formulas on stacked gates [G·U, ·]."""
    w_ih, w_hh, bias = w
    gate = [slice(i * U, (i + 1) * U) for i in range(4)]

    def pre(g: slice, h: np.ndarray) -> np.ndarray:
        return x @ w_ih[g].T + h @ w_hh[g].T + bias[g]

    if name == "lstm":
        c, h = state
        i, f, g, o = (pre(part, h) for part in gate)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return h, (c, h)
    h = state
    if name == "basic_rnn":
        h = np.tanh(pre(gate[0], h))
        return h, h
    r, z = sigmoid(pre(gate[0], h)), sigmoid(pre(gate[1], h))
    if name == "gru":
        n = np.tanh(x @ w_ih[gate[2]].T + bias[gate[2]] + r * (h @ w_hh[gate[2]].T))
    else:
        n = np.tanh(pre(gate[2], r * h))
    h = (1 - z) * n + z * h
    return h, h


@pytest.mark.parametrize("name", BUILT_IN_CELLS)
def test_a_step_is_the_cells_formula(name: str) -> None:
    cell = cell_of(name)
    weights = [dict(cell.named_parameters())[key].detach().numpy() for key in ("weight_ih", "weight_hh", "bias")]
    x, state = inputs(5, 1)[:, 0], random_state(cell, 5)
    as_numpy = tuple(part.numpy() for part in state) if isinstance(state, tuple) else state.numpy()
    expected, after = by_formula(name, weights, x.numpy(), as_numpy)
    with torch.no_grad():
        y, found = cell.step(x, state)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(
        [part.numpy() for part in flatten_state(found)], np.reshape(after, (-1, 5, U)), atol=1e-15
    )


@pytest.mark.parametrize("name", BUILT_IN_CELLS)
def test_initial_weights_are_the_originals(name: str) -> None:
    torch.manual_seed(0)
    cell = build_cell(name, 50, 40)
    units = 40
    kernels = {"basic_rnn": [1], "lstm": [4], "gru": [2, 1], "gru_reset_before": [2, 1]}[name]
    start = 0
    for gates in kernels:
        rows = slice(start, start + gates * units)
        limit = (6 / (50 + units + gates * units)) ** 0.5
        for weight in (cell.weight_ih[rows], cell.weight_hh[rows]):
            assert limit * 0.95 < weight.abs().max() <= limit
            assert abs(weight.mean()) < limit / 10
        start = rows.stop
    expected = torch.zeros(len(cell.bias))
    expected[: 2 * units if name.startswith("gru") else 0] = 1
    assert torch.equal(cell.bias, expected)


def test_only_one_bias_is_trained_and_the_forget_bias_is_in_no_bundle() -> None:
    cell = LstmCell(F, U)
    assert [name for name, _ in cell.named_parameters()] == ["weight_ih", "weight_hh", "bias"]
    assert list(cell.state_dict()) == ["weight_ih", "weight_hh", "bias"]
    assert cell.bias_hh.tolist() == [0.0] * U + [1.0] * U + [0.0] * 2 * U


def test_the_reset_before_gru_starts_like_the_gru() -> None:
    torch.manual_seed(5)
    gru = build_cell("gru", F, U)
    torch.manual_seed(5)
    before = GruResetBeforeCell(F, U)
    assert {k: v.tolist() for k, v in gru.state_dict().items()} == {
        k: v.tolist() for k, v in before.state_dict().items()
    }


# States and names ---------------------------------------------------------------------------------------------


def test_nested_states_flatten_depth_first_and_back() -> None:
    cell = build_cell("nested_for_tests", F, U)
    state = random_state(cell, 2)
    flat = flatten_state(state)
    assert [tuple(part.shape) for part in flat] == [(2,), (2, U), (2, U, 2)]
    back = unflatten_state(cell.zero_state(2), [part.reshape(2, -1) for part in flat])
    assert torch.equal(back[0], state[0])
    assert torch.equal(back[1][0], state[1][0])
    assert torch.equal(back[1][1], state[1][1])


def test_select_takes_rows_through_nested_states() -> None:
    cell = build_cell("nested_for_tests", F, U)
    before, after = cell.zero_state(3), random_state(cell, 3)
    chosen = select(torch.tensor([True, False, True]), after, before)
    for part, new in zip(flatten_state(chosen), flatten_state(after), strict=True):
        assert torch.equal(part, new * torch.tensor([1.0, 0, 1]).view(-1, *[1] * (new.dim() - 1)))


def test_an_unknown_cell_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as raised:
        build_cell("lstmm", F, U)
    assert str(raised.value) == (
        "cell_type must be one of basic_rnn, lstm, gru, gru_reset_before, nested_for_tests, but is 'lstmm'; did you "
        "mean lstm?; a cell of your own must be registered by a module listed under `plugins:`"
    )


def test_a_name_means_one_class() -> None:
    class Other(Cell):
        pass

    for name in ("lstm", "nested_for_tests"):
        with pytest.raises(ConfigError) as raised:
            register_cell(name, Other)
        assert str(raised.value) == f"cell name {name!r} is taken; register Other under another one"
    register_cell("nested_for_tests", NestedCell)
    assert registered_cell("nested_for_tests") is NestedCell
    assert registered_cell("gru") is None


def test_a_plugin_that_cannot_be_imported_is_told() -> None:
    import_plugins(["json"])
    with pytest.raises(ConfigError) as raised:
        import_plugins(["no_such_package.cells"])
    assert str(raised.value) == (
        "plugins: module 'no_such_package.cells' must be importable, but 'no_such_package' is not found; run from the "
        "directory that holds it or install it"
    )
