"""One training step, the same for the estimator and for every worker of a cluster.

A worker computes the *sum* of its rows' weighted losses; gradients, loss sum and weight sum travel in one buffer;
the gradient is the total divided by the total weight. So N workers train what one worker trains, and a batch of
weight 0 moves nothing. Knows no Ray, no files: how buffers are added up across workers is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from model.batches.collate import SequenceBatch
from model.errors import TrainingError
from model.features.fitted_columns import GROUPS
from model.features.labels import FittedLabel
from model.network import heads
from model.network.dropout import DropoutKey
from model.network.network import RnnNetwork
from model.training.config import StepConfig
from model.training.optimizers import VOTES, FlatParameters
from model.training.torch_optimizers import NO_CODE, OptimizerCode, make_optimizer
from model.training.truncation import CARRIED, TruncatedBatch

Reduce = Callable[[torch.Tensor], None]


class StepResult(NamedTuple):
    """The global batch's mean loss before the update, its weight, and the gradient norm before clipping."""

    loss: float
    weight: float
    gradient_norm: float


class Trainer:
    """A network, its optimizer and the steps made so far. `reduce` adds a buffer up over all workers, in place.

    `position` counts global batches, those of weight 0 included, which make no optimizer step: it is the place in the
    plan, and what dropout masks are drawn from. A step takes one batch, or a segment of one, or several of either.
    `autocast` computes forward and backward in that type; weights, gradients and losses keep the network's. `code` is
    what no config can hold: an optimizer or a clipping function of the user's.

    `vote` is what this worker tells the others with its next step; `votes` is the sum of what all have told.
    """

    def __init__(
        self,
        network: RnnNetwork,
        label: FittedLabel,
        config: StepConfig,
        *,
        seed: int,
        reduce: Reduce | None = None,
        autocast: torch.dtype | None = None,
        code: OptimizerCode = NO_CODE,
    ) -> None:
        self.network = network
        self.label = label
        self.seed = seed
        self.reduce = reduce
        self.autocast = autocast
        self.flat = FlatParameters(network)
        self.optimizer = make_optimizer(config, self.flat, code)
        self.position = 0
        self.vote = self.votes = (0.0,) * VOTES
        names = {id(parameter): name for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._tables = [
            (names[id(part.table)], group, part)
            for group in GROUPS
            for part in network.inputs.represents(group)
            if id(part.table) in names
        ]

    @property
    def step_count(self) -> int:
        """Optimizer steps made."""
        return self.optimizer.step_count

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(plain data, tensors) that `load_state` goes on from; the tensors are copies."""
        tensors = {name: tensor.cpu().clone() for name, tensor in self.optimizer.state_tensors().items()}
        numbers = {"step": self.position, "optimizer_steps": self.step_count} | self.optimizer.state_numbers()
        return numbers, tensors

    def load_state(self, numbers: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Goes on from a `state`; the weights are the network's business. ConfigError for another optimizer's."""
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(CARRIED)}
        self.optimizer.check_fits(numbers, tensors)
        self.position = int(numbers["step"])
        self.optimizer.load_state(int(numbers["optimizer_steps"]), tensors, numbers)

    def step(self, batch: SequenceBatch | None) -> StepResult:
        """One step on this worker's rows of the global batch (None: it has none of them).

        TrainingError when the loss or the gradient is not finite; the weights then are those before the step.
        """
        self.position += 1
        return self.step_over([TruncatedBatch(self.position, batch)], 0)

    def step_over(self, parts: Sequence[TruncatedBatch], number: int) -> StepResult:
        """One step on segment `number` of several batches: the weighted mean over all their steps (or rows).

        `position` is left to the caller. TrainingError as `step`.
        """
        self.flat.buffer.zero_()
        if any(self.vote):
            self.flat.votes.copy_(torch.tensor(self.vote))
        for part in parts:
            batch = part.segment(number)
            if batch is not None:
                self._accumulate(part, number, batch.to(self.network.device, self.network.dtype))
        if self.reduce is not None:
            self.reduce(self.flat.buffer)
        loss, weight, *votes = self.flat.buffer[-2 - VOTES :].tolist()
        self.votes = tuple(votes)
        if weight == 0:
            return StepResult(math.nan, 0.0, 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss must be a finite number, but is {loss} at step {self.step_count + 1}; lower "
                f"train.learning_rate, or look for extreme values in the data"
            )
        self.flat.gradient.div_(weight)
        norm = self.optimizer.step(self.optimizer.config.rate(self.step_count))
        return StepResult(loss / weight, weight, norm)

    def _accumulate(self, part: TruncatedBatch, number: int, batch: SequenceBatch) -> None:
        """Adds this worker's gradients, look-up marks, loss and weight to the buffer, and carries the states on."""
        assert batch.labels is not None, "training needs labels"
        assert batch.weights is not None, "labels come with weights"
        key = DropoutKey(self.seed, part.position, batch.rows_B, part.first_step(number))
        goes_on, learns = part.goes_on(number), part.learns(number)
        with torch.set_grad_enabled(learns):
            with nullcontext() if self.autocast is None else torch.autocast(batch.rows_B.device.type, self.autocast):
                output = self.network(batch, keep_state=goes_on, dropout=key)
            losses = heads.loss(self.label, output.logits.to(self.network.dtype), batch.labels)
            total = (losses * batch.weights).sum()
        if learns:
            torch.autograd.backward(total)
            self._count(batch, total.detach())
        if goes_on:  # last, for backward reads the states that this replaces
            part.carry(number, [tensor.to(self.network.dtype) for tensor in output.state])

    def _count(self, batch: SequenceBatch, total: torch.Tensor) -> None:
        assert batch.weights is not None, "labels come with weights"
        for name, group, column in self._tables:
            self.flat.mark(name, column.rows_read(batch.sequence if group == "sequence" else batch.context))
            if column.key in batch.looked_up:
                self.flat.mark(name, batch.looked_up[column.key])
        self.flat.sums.add_(torch.stack([total, batch.weights.sum()]))
