"""How exactly torch computes: the switches of a process, set in one place before a training begins."""

from __future__ import annotations

import os

import torch

from model.errors import ConfigError
from model.training.config import TrainConfig

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def set_numerics(config: TrainConfig, device: torch.device) -> None:
    """Sets TensorFloat32 and determinism of CUDA; CPUs have nothing to set and compute the same bits each time.

    Must run before the process multiplies its first matrices on the GPU: cuBLAS reads its workspace's size then.
    """
    if device.type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.deterministic = config.deterministic
    if config.deterministic:
        os.environ.setdefault(_WORKSPACE, ":4096:8")  # without it cuBLAS and cuDNN's RNNs may sum in another order
    torch.use_deterministic_algorithms(config.deterministic)


def autocast_type(config: TrainConfig, network_dtype: torch.dtype) -> torch.dtype | None:
    """What forward and backward compute in where that is not the network's type. ConfigError for float64 networks."""
    if config.precision == "float32":
        return None
    if network_dtype is not torch.float32:
        raise ConfigError(
            f"train.precision {config.precision} needs model.dtype float32, but it is "
            f"{str(network_dtype).removeprefix('torch.')}; set one of them back"
        )
    return torch.bfloat16
