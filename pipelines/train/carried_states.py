"""What a checkpoint within a batch holds beside weights: the states that all workers' rows carry to the next segment.

They stand in the order of the global batch, whichever worker had which row, so that another number of workers goes
on from them. Knows no Ray: how a tensor is added up over workers is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from model.batches.plan import Plan
from model.network.cells import flatten_state
from model.network.network import RnnNetwork
from model.training.trainer import Reduce
from model.training.truncation import CARRIED
from pipelines.train.steps import StepGroup

Tensors = dict[str, torch.Tensor]
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def gathered(
    group: StepGroup, plan: Plan, network: RnnNetwork, rank: int, world: int, reduce: Reduce | None
) -> Tensors:
    """The states [rows of the global batch, …] of each batch of the group, by `carried/<batch>/<component>`."""
    tensors = {}
    for place, part in enumerate(group.parts):
        rows, mine = _rows(plan, group.start + place, rank, world)
        for i, like in enumerate(flatten_state(network.zero_state(1))):
            whole = like.new_zeros(rows, *like.shape[1:])
            if part.state is not None:
                whole[mine] = part.state[i]
            if reduce is not None:
                reduce(whole.view(_BITS[whole.dtype]))  # as integers: a sum with zeros keeps every bit, −0's too
            tensors[f"{CARRIED}{place}/{i}"] = whole.cpu()
    return tensors


def restore(
    group: StepGroup, plan: Plan, network: RnnNetwork, rank: int, world: int, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Gives each part of the group its rows' states from a checkpoint's tensors."""
    components = len(flatten_state(network.zero_state(1)))
    for place, part in enumerate(group.parts):
        _, mine = _rows(plan, group.start + place, rank, world)
        states = [tensors[f"{CARRIED}{place}/{i}"][mine] for i in range(components)]
        if part.batch is not None:
            part.state = tuple(state.to(network.device, copy=True) for state in states)


def _rows(plan: Plan, batch: int, rank: int, world: int) -> tuple[int, slice]:
    """(rows of a global batch, which of them are this rank's)."""
    counts = [plan.rank_rows(batch, each, world) for each in range(world)]
    start = sum(counts[:rank])
    return plan.batch_rows(batch), slice(start, start + counts[rank])
