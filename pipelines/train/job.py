"""What is handed to the loop of a worker: its job, and the calls by which it reports. Knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from model.batches.collate import SequenceBatch
from model.batches.plan import DataIndex, Plan
from model.bundle.bundle import Bundle, TrainingState
from model.errors import TrainingError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.training.trainer import Reduce
from pipelines.config import RunConfig
from pipelines.ingest.fitted_data import FittedData
from pipelines.ingest.read_task import RowReader
from pipelines.tracking.follower import Progress
from pipelines.train.steps import Position, Step


class Batches(Protocol):
    """Gives this rank's batches of a plan's steps start … stop − 1."""

    def __call__(self, plan: Plan, start: int, stop: int) -> Iterator[SequenceBatch | None]: ...


@dataclass(frozen=True)
class Report:
    """The state at one validation or checkpoint: metrics, a bundle, and what it takes to go on from here.

    `ended` says why the `last` one is the last; it is empty before.
    """

    step: int
    metrics: dict[str, float]
    bundle: Bundle
    training: TrainingState
    last: bool
    ended: str = ""


@dataclass(frozen=True)
class Job:
    """What one worker is to do. `report` is called by every rank, equally often; `progress` by rank 0 alone.

    `checkpoint` gets what is to be kept between validations (None: nothing is); `explain` adds to the error of a step
    that has failed; `start` holds the weights to begin with (None: the seed's).
    """

    config: RunConfig
    columns: FittedColumns
    label: FittedLabel
    train: Plan
    validation: Plan | None
    batches: Batches
    report: Callable[[Report], None]
    checkpoint: Callable[[Report], None] | None = None
    progress: Callable[[Progress], None] = lambda _: None
    explain: Callable[[TrainingError, Step], TrainingError] = lambda error, _: error
    reduce: Reduce | None = None
    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    start: Bundle | None = None
    resume: tuple[Bundle, TrainingState] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """What a checkpoint says of the training so far, beside weights and optimizer; nothing at the start."""

    place: Position = field(default_factory=Position)
    rules: Mapping[str, Any] | None = None
    meter: Mapping[str, float] = field(default_factory=dict)


def reader_of(config: RunConfig, prepared: FittedData) -> RowReader:
    """What reads the rows of a run's plans: with the states that they bring, and labels as the run takes them."""
    counts = config.data.unseen_labels == "count"
    return RowReader(prepared.columns, prepared.label, prepared.state_spec, unseen_labels=counts)


def job_on(config: RunConfig, prepared: FittedData, **by_place: Any) -> Job:
    """A config's job on fitted data; `by_place` is what differs by where it trains."""
    train_plan, validation_plan = plans(config, prepared.train, prepared.validation)
    return Job(config, prepared.columns, prepared.label, train_plan, validation_plan, **by_place)


def plans(config: RunConfig, train: DataIndex, validation: DataIndex | None) -> tuple[Plan, Plan | None]:
    """The run's plans: training rows shuffled by its seed, validation rows each once and bucketed by length."""
    settings = config.train
    plan = partial(Plan, batch_sequences=settings.batch_sequences, batch_padded_steps=settings.batch_padded_steps)
    return (
        plan(train, seed=settings.seed, window_batches=settings.window_batches),
        None if validation is None else plan(validation, shuffle=False),
    )
