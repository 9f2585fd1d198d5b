"""What a worker's training needs of memory, estimated before it begins, and whether it can fit at all.

An estimate: activations are counted in numbers that a cell keeps a step for its gradient, measured within a factor of
two. Only weights, gradients and optimizer slots are certain; where these alone do not fit, training is refused.
Starts no Ray.
"""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass

import torch
from torch import nn

from model.batches.encode import encoded_bytes
from model.batches.plan import DataIndex, Plan
from model.errors import ResourceError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.network.cells import build_cell
from model.network.network import InputLayer, logit_count
from model.registry import registered_cell
from model.state import StateSpec
from model.training.optimizers import SLOTS
from pipelines.cluster.machine import memory_bytes
from pipelines.config import RunConfig
from pipelines.ingest.batches import KEPT_BYTES
from pipelines.ingest.fitted_data import FittedData
from pipelines.ingest.prefetch import AHEAD_BATCHES
from pipelines.train.job import plans
from pipelines.train.validation import KEPT_VALIDATION_BYTES

MIB = 2**20
CLOSE = 0.7  # of the memory there is: what the estimate leaves out, such as torch itself, takes the rest
KEPT_NUMBERS = {"basic_rnn": 6, "gru": 12, "lstm": 18}  # a unit and step, forward and backward
KEPT_NUMBERS_OF_OTHERS = 20  # cells that are unrolled step by step


@dataclass(frozen=True)
class Estimate:
    """Bytes that one worker needs, beside what Python, torch and Ray take themselves.

    `optimizer` has the gradients and its slots, `checkpoint` is the copy of weights and slots while one is written.
    """

    weights: int
    optimizer: int
    checkpoint: int
    activations: int
    batches: int
    kept_rows: int

    @property
    def total(self) -> int:
        """All of it, at its peak."""
        return sum(asdict(self).values())

    @property
    def certain(self) -> int:
        """What is there throughout, whatever the data."""
        return self.weights + self.optimizer

    def __str__(self) -> str:
        parts = ", ".join(f"{name.replace('_', ' ')} {_mib(count)}" for name, count in asdict(self).items() if count)
        return f"about {_mib(self.total)} ({parts})"


def estimate(
    config: RunConfig,
    columns: FittedColumns,
    label: FittedLabel,
    train: Plan,
    validation: Plan | None,
    world: int,
    states: StateSpec | None = None,
) -> Estimate:
    """What each of `world` workers needs, where rows may bring `states`."""
    number_bytes = torch.finfo(getattr(torch, config.model.dtype)).bits // 8
    weights, width = parameters(config, columns, label)
    slots = len(SLOTS.get(config.train.optimizer, {"of a registered optimizer": 0.0, "as many as Adam's": 0.0}))
    steps = largest_batch(train, world, config.train.unroll_steps)
    kept = KEPT_NUMBERS.get(config.model.cell_type, KEPT_NUMBERS_OF_OTHERS)
    per_step = 2 * width + kept * sum(config.model.num_units)
    if label.per_step:
        per_step += 4 * logit_count(label)
    whole = largest_batch(train, world, None)
    return Estimate(
        weights=weights * number_bytes,
        optimizer=weights * number_bytes * (1 + slots),
        checkpoint=weights * number_bytes * (2 + slots),  # and what a step of the optimizer takes between
        activations=steps * per_step * number_bytes,
        batches=(1 + AHEAD_BATCHES) * whole * _step_bytes(train.index, columns),
        kept_rows=kept_rows(config, columns, train, validation, world, states),
    )


def estimate_of(config: RunConfig, prepared: FittedData, world: int) -> Estimate:
    """`estimate` of a run's data."""
    train, validation = plans(config, prepared.train, prepared.validation)
    return estimate(config, prepared.columns, prepared.label, train, validation, world, prepared.state_spec)


def parameters(config: RunConfig, columns: FittedColumns, label: FittedLabel) -> tuple[int, int]:
    """(numbers in all weights, width of a step's input); built-in layers are counted without being made."""
    model = config.model
    with torch.device("meta"):
        inputs = InputLayer(columns)
    layers: list[nn.Module] = [inputs]
    for wide, units in zip((inputs.width, *model.num_units), model.num_units, strict=False):
        with torch.device("cpu" if registered_cell(model.cell_type) else "meta"):
            layers.append(build_cell(model.cell_type, wide, units))
    projection = (model.num_units[-1] + 1) * logit_count(label)
    return sum(each.numel() for layer in layers for each in layer.parameters()) + projection, inputs.width


def largest_batch(plan: Plan, world: int, unroll_steps: int | None) -> int:
    """Padded steps of a worker's part of the largest batch there may be: one that holds the longest row."""
    longest = int(plan.index.lengths.max(initial=1))
    rows = plan.batch_sequences or max(1, (plan.batch_padded_steps or 1) // longest)
    return -(-min(rows, plan.index.rows) // world) * min(longest, unroll_steps or longest)


def kept_rows(
    config: RunConfig,
    columns: FittedColumns,
    train: Plan,
    validation: Plan | None,
    world: int,
    states: StateSpec | None,
) -> int:
    """Rows that a worker keeps from epoch to epoch: all of the training's, and its batches of validation."""
    several = config.train.total_steps(train.first_step) * config.train.accumulate_batches > train.steps_per_epoch
    training = encoded_bytes(train.index, columns, states)
    kept = training if several and training <= KEPT_BYTES else 0
    if validation is not None:
        kept += min(KEPT_VALIDATION_BYTES, encoded_bytes(validation.index, columns, states) // world)
    return kept


def _step_bytes(index: DataIndex, columns: FittedColumns) -> int:
    return encoded_bytes(index, columns) // max(index.steps, 1)


def require_memory(needed: Estimate, there_bytes: int, workers: int, where: str) -> None:
    """ResourceError where weights, gradients and slots of the workers that share `where` exceed its memory."""
    if needed.certain * workers > there_bytes:
        raise ResourceError(
            f"weights, gradients and optimizer of {workers} worker{'' if workers == 1 else 's'} must fit into {where}, "
            f"but take {_mib(needed.certain * workers)} of its {_mib(there_bytes)}: use larger nodes or fewer workers "
            "on one, smaller embeddings or num_units, or an optimizer with fewer slots"
        )


def warning(needed: Estimate, there_bytes: int, workers: int, where: str) -> str | None:
    """What to tell where it is close; None where there is room."""
    if needed.total * workers <= CLOSE * there_bytes:
        return None
    return (
        f"memory may not suffice: {workers} worker{'' if workers == 1 else 's'} of {needed} share the "
        f"{_mib(there_bytes)} of {where}; lower train.batch_sequences, or set train.unroll_steps or "
        "train.accumulate_batches"
    )


def require_here(needed: Estimate, device: torch.device, workers_here: int) -> None:
    """`require_memory` of this worker's GPU or, shared by the workers of this node, of the node."""
    if device.type == "cuda":
        require_memory(needed, torch.cuda.get_device_properties(device).total_memory, 1, f"{device}")
    else:
        require_memory(needed, memory_bytes(), workers_here, f"the memory of {socket.gethostname()}")


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB" if count >= MIB else f"{count / MIB:.1f} MiB"
