"""How to train: the optimizer, the batches and the budget. Read without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from model.registry import check_optimizer
from model.settings import Settings
from model.training.schedules import Schedule


class StepConfig(Settings):
    """What every optimizer has: its rate, the rate's schedule, and the clipping before it."""

    learning_rate: float = Field(0.1, gt=0, description="step size")
    schedule: Schedule | None = Field(
        None, description="constant, step, cosine or linear, with warmup_steps; null keeps learning_rate throughout"
    )
    gradient_clipping_norm: float | None = Field(
        5.0, gt=0, description="gradients are scaled down to this global norm; null does not clip"
    )

    def rate(self, steps_made: int) -> float:
        """The learning rate of the step that follows `steps_made` optimizer steps."""
        return self.learning_rate * (1.0 if self.schedule is None else self.schedule.factor(steps_made))


class OptimizerConfig(StepConfig):
    """How weights move; the original's names and defaults."""

    optimizer: str = Field("SGD", description="Adagrad, Adam, Ftrl, Momentum, RMSProp, SGD, or a registered optimizer")
    momentum: float | None = Field(None, ge=0, lt=1, description="needed by Momentum, and only there")

    @field_validator("optimizer", mode="before")
    @classmethod
    def _a_name(cls, value: Any) -> Any:
        check_optimizer(value)
        return value

    def model_post_init(self, _context: object) -> None:
        if self.optimizer == "Momentum" and self.momentum is None:
            raise ValueError("optimizer Momentum needs `momentum`, but it is null; 0.9 is a usual value")
        if self.optimizer != "Momentum" and self.momentum is not None:
            raise ValueError(f"momentum is for optimizer Momentum, but optimizer is {self.optimizer}")


class TrainConfig(OptimizerConfig):
    """How long and on what batches to train."""

    epochs: int | None = Field(None, ge=1, description="passes over the training rows; 1 where steps is null, too")
    steps: int | None = Field(
        None, ge=1, description="steps: a batch, segment or accumulated group each; exclusive with epochs"
    )
    batch_sequences: int | None = Field(
        32, ge=1, description="rows of the global batch, over all workers; null where batch_padded_steps is given"
    )
    batch_padded_steps: int | None = Field(
        None, ge=1, description="or a global batch of so many rows that rows times the longest is at most this"
    )
    window_batches: int = Field(
        64, ge=1, description="batches a shuffling window holds; more pad less, need more memory"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="decides initial weights, order of rows and dropout masks")
    unroll_steps: int | None = Field(
        None,
        ge=1,
        description="truncated back-propagation: sequences are trained in segments of so many steps, an optimizer step "
        "each, with the state carried on; bounds memory; null trains whole sequences",
    )
    accumulate_batches: int = Field(
        1, ge=1, description="batches of one optimizer step, computed one after another; the mean is over all of them"
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="bf16 computes in bfloat16 where that is safe; weights and losses stay float32"
    )
    tf32: bool = Field(False, description="CUDA: float32 products may use TensorFloat32, faster and 1e-3 as exact")
    deterministic: bool = Field(
        False, description="CUDA: only kernels that give the same bits each time, or an error; CPUs always do"
    )

    def model_post_init(self, context: object) -> None:
        super().model_post_init(context)
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps exclude each other; set one of them to null")
        if self.batch_sequences is not None and self.batch_padded_steps is not None:
            raise ValueError("batch_sequences and batch_padded_steps exclude each other; set one of them to null")
        if self.batch_sequences is None and self.batch_padded_steps is None:
            raise ValueError("batch_sequences or batch_padded_steps must be given, but both are null")

    @model_validator(mode="before")
    @classmethod
    def _one_batch_bound(cls, values: Any) -> Any:
        """A budget of steps takes the place of the default number of rows."""
        if isinstance(values, Mapping) and values.get("batch_padded_steps") is not None:
            return {"batch_sequences": None, **values}
        return values

    def total_steps(self, first_step: Callable[[int], int]) -> int:
        """Steps of the whole training, with unroll_steps the least that its epochs take.

        `first_step` gives the batch that an epoch begins with (`Plan.first_step`).
        """
        if self.steps is not None:
            return self.steps
        starts = [first_step(epoch) for epoch in range((self.epochs or 1) + 1)] if self.accumulate_batches > 1 else []
        if not starts:
            return first_step(self.epochs or 1)
        return sum(-(-(stop - start) // self.accumulate_batches) for start, stop in pairwise(starts))
