"""bfloat16 where it is safe: it trains, its weights stay float32, and it is neither float32 nor far from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.batches.encode import encode_rows
from model.errors import ConfigError
from model.training.config import TrainConfig
from model.training.numerics import autocast_type, set_numerics

CELLS = ("basic_rnn", "lstm", "gru", "gru_reset_before")


@pytest.mark.parametrize("unroll", [None, 3])
@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("cell", CELLS)
def test_bf16_trains_about_what_float32_trains_and_keeps_float32_weights(
    make_bundle: Any, make_table: Any, train_in_memory: Any, cell: str, prediction: str, unroll: int | None
) -> None:
    bundle = make_bundle("classification", prediction, cell)
    rows = encode_rows(make_table("classification", prediction, rows=20), bundle.columns, bundle.label)
    settings = {"steps": 30, "evaluate_every_steps": 10, "unroll_steps": unroll, "learning_rate": 0.02}
    exact = train_in_memory(bundle, rows, **settings)
    half = train_in_memory(bundle, rows, precision="bf16", **settings)
    assert {tensor.dtype for tensor in half.last.bundle.tensors.values()} == {torch.float32}
    assert {tensor.dtype for tensor in half.last.training.tensors.values()} == {torch.float32}
    assert half.losses != exact.losses
    assert half.losses == pytest.approx(exact.losses, rel=0.1)
    assert half.losses[-1] < half.losses[0]


def test_bf16_validates_in_float32(make_bundle: Any, make_table: Any, train_in_memory: Any) -> None:
    bundle = make_bundle("classification", "multiple_value", "lstm")
    rows = encode_rows(make_table(rows=20), bundle.columns, bundle.label)
    settings = {"steps": 1, "learning_rate": 1e-30, "validation": rows}  # the weights stay as they are
    exact, half = (train_in_memory(bundle, rows, precision=precision, **settings) for precision in ("float32", "bf16"))
    assert half.last.metrics["validation_loss"] == exact.last.metrics["validation_loss"]


def test_bf16_needs_a_float32_network() -> None:
    with pytest.raises(ConfigError) as raised:
        autocast_type(TrainConfig(precision="bf16"), torch.float64)
    assert str(raised.value) == (
        "train.precision bf16 needs model.dtype float32, but it is float64; set one of them back"
    )
    assert autocast_type(TrainConfig(precision="bf16"), torch.float32) is torch.bfloat16
    assert autocast_type(TrainConfig(), torch.float64) is None


def test_cuda_switches_follow_the_settings_and_cpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32
    try:
        set_numerics(TrainConfig(tf32=True, deterministic=True), torch.device("cpu"))
        assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32) == before
        set_numerics(TrainConfig(tf32=True, deterministic=True), torch.device("cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
    finally:
        set_numerics(TrainConfig(), torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
