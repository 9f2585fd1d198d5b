"""The validation of a worker's rows and the metrics of all workers. Knows no Ray."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from model.batches.collate import SequenceBatch
from model.network.network import RnnNetwork
from model.scoring.metric_names import of_validation, sum_names
from model.scoring.metrics import MetricState, batch_state, merged, results
from pipelines.train.job import Job

KEPT_VALIDATION_BYTES = 256 * 2**20  # a worker


class Validation:
    """This rank's validation batches, kept after the first pass where they are small enough to be read once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._kept: list[SequenceBatch] | None = None

    def metrics(self, network: RnnNetwork) -> dict[str, float]:
        """Metrics over the validation rows, each exactly once over all ranks, named `validation_…`."""
        if self.job.validation is None:
            return {}
        total = summed(self.job, merged(batch_metrics(self.job, network, batch) for batch in self._batches()))
        return {of_validation(name): value for name, value in results(self.job.label, total).items()}

    def _batches(self) -> Iterator[SequenceBatch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[SequenceBatch] | None = []
        kept_bytes = 0
        for batch in self._read():
            kept_bytes += batch.nbytes
            if kept_bytes > KEPT_VALIDATION_BYTES:
                kept = None
            if kept is not None:
                kept.append(batch)
            yield batch
        self._kept = kept

    def _read(self) -> Iterator[SequenceBatch]:
        plan = self.job.validation
        assert plan is not None, "metrics() returns before"
        steps = min(plan.steps_per_epoch, self.job.config.train.validation_batches or plan.steps_per_epoch)
        return (batch for batch in self.job.batches(plan, 0, steps) if batch is not None)


def batch_metrics(job: Job, network: RnnNetwork, batch: SequenceBatch) -> MetricState:
    """The metric sums of one batch, without gradients or dropout."""
    batch = batch.to(job.device, network.dtype)
    with torch.inference_mode():
        return batch_state(job.label, network(batch, keep_state=False).logits, batch)


def summed(job: Job, state: MetricState) -> MetricState:
    """Metric sums added up over all workers; a worker that had no row joins with zeros."""
    if job.reduce is None:
        return state
    names = sorted(sum_names(job.label))
    vector = torch.tensor([state.get(name, 0.0) for name in names], dtype=torch.float64, device=job.device)
    job.reduce(vector)
    return dict(zip(names, vector.tolist(), strict=True))
