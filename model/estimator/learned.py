"""An estimator's model between calls, in memory and in model_dir: a bundle, the optimizer's state, the position.

Training always starts from such a `TrainedModel` and ends in one, so that going on in the same process, in another one
or after a crash are the same thing, to the bit. Knows no user input.

    model_dir/checkpoint-<position>/   a bundle with its training part
    model_dir/latest, best             the newest one's name

A model_dir may also be a run that a cluster trained, or a bundle: it is used, and trained on, all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from model.batches.collate import SequenceBatch
from model.bundle.bundle import (
    TRAINING_STATE,
    Bundle,
    TrainingState,
    bundle_of,
    load_bundle,
    load_training_state,
    save_bundle,
)
from model.bundle.run_directory import MANIFEST, point_to, pointed
from model.config import network_settings, there_and_here
from model.errors import ConfigError
from model.estimator.arguments import Declared, EstimatorConfig
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.network.network import build_network
from model.storage import exists, join, list_names, remove_tree
from model.training.trainer import StepResult, Trainer

PREFIX = "checkpoint-"


@dataclass(frozen=True)
class TrainedModel:
    """A model as trained so far. `training` is None where only its weights are known: the optimizer begins anew."""

    bundle: Bundle
    training: TrainingState | None

    @property
    def position(self) -> int:
        """Batches seen: the global step, and the place in the plan."""
        return int(self.training.numbers["step"]) if self.training is not None else 0


@dataclass(frozen=True)
class StepInfo:
    """What a monitor is told after each step.

    `publish` makes the estimator's other methods see the weights of this step (they see those before the fit), `save`
    writes a checkpoint besides, where there is a model_dir.
    """

    global_step: int
    loss: float
    gradient_norm: float
    publish: Callable[[], None] = lambda: None
    save: Callable[[], None] = lambda: None


AfterStep = Callable[[int, StepResult, Callable[[], TrainedModel]], bool]


def device_of(config: EstimatorConfig) -> torch.device:
    """The device to compute on."""
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def start(declared: Declared, columns: FittedColumns, label: FittedLabel) -> TrainedModel:
    """An untrained model with the seed's initial weights."""
    network = build_network(declared.model, columns, label, declared.run.seed)
    trainer = Trainer(network, label, declared.optimizer, seed=declared.run.seed, code=declared.code)
    return _learned(trainer, columns)


def as_declared(learned: TrainedModel, declared: Declared) -> TrainedModel:
    """The model under the constructor's present arguments. ConfigError where they mean another network.

    Dropout, probabilities and the names of label and weight may change; so may learning rate, momentum and clipping.
    """
    bundle, config = learned.bundle, declared.model
    differ = network_settings(bundle.config, config)
    if config.num_classes not in ("auto", bundle.label.num_classes):
        differ.append("num_classes")
    if differ:
        told = there_and_here(differ, bundle.config, config, _short)
        raise ConfigError(f"the arguments must fit the model trained so far, but {told}; use another model_dir")
    label = bundle.label.model_copy(update={"name": config.label, "weight": config.weight})
    if (config, label) == (bundle.config, bundle.label):
        return learned
    return TrainedModel(replace(bundle, config=config, label=label), learned.training)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def train(
    learned: TrainedModel,
    declared: Declared,
    batches: Iterator[SequenceBatch],
    after_step: AfterStep,
) -> TrainedModel:
    """Trains on the batches until they end or `after_step` says so; it gets a function that gives the model so far."""
    trainer = _trainer(learned, declared)
    device = device_of(declared.run)
    so_far = partial(_learned, trainer, learned.bundle.columns)
    for batch in batches:
        result = trainer.step(batch.to(device, trainer.network.dtype))
        if after_step(trainer.position, result, so_far):
            break
    return so_far()


def _trainer(learned: TrainedModel, declared: Declared) -> Trainer:
    network = learned.bundle.network().train().to(device_of(declared.run))
    label, seed = learned.bundle.label, declared.run.seed
    trainer = Trainer(network, label, declared.optimizer, seed=seed, code=declared.code)
    if learned.training is not None:
        trainer.load_state(learned.training.numbers, learned.training.tensors)
    return trainer


def _learned(trainer: Trainer, columns: FittedColumns) -> TrainedModel:
    bundle = bundle_of(trainer.network, columns, trainer.label, provenance={"step": trainer.position})
    numbers, tensors = trainer.state()
    rate = trainer.optimizer.learning_rate
    return TrainedModel(bundle, TrainingState({**numbers, "learning_rate": rate}, tensors))


def variables(learned: TrainedModel) -> dict[str, np.ndarray]:
    """What a checkpoint holds by name: weights, `optimizer/<slot>/<weight>`, `global_step`, `learning_rate`."""
    held: dict[str, np.ndarray] = {name: tensor.numpy() for name, tensor in learned.bundle.tensors.items()}
    held["global_step"] = np.asarray(learned.position, np.int64)
    if learned.training is None:
        return held
    held |= {f"optimizer/{name}": tensor.numpy() for name, tensor in learned.training.tensors.items()}
    rate = learned.training.numbers.get("learning_rate")  # a cluster's run keeps it in its settings
    return held if rate is None else held | {"learning_rate": np.asarray(rate, np.float32)}


# model_dir --------------------------------------------------------------------------------------------------------


def save(model_dir: str, learned: TrainedModel, keep: int) -> None:
    """Writes a checkpoint, makes it the latest, and removes all but the newest `keep`."""
    name = f"{PREFIX}{learned.position:08d}"
    save_bundle(join(model_dir, name), learned.bundle, learned.training)
    point_to(model_dir, "latest", name)
    point_to(model_dir, "best", name)
    checkpoints = [each for each in list_names(model_dir) if each.startswith(PREFIX)]
    for old in checkpoints[:-keep]:
        if old != name:
            remove_tree(join(model_dir, old))


def latest_name(model_dir: str | None) -> str | None:
    """The newest checkpoint's name; "." where model_dir itself is a bundle; None where there is no model."""
    if model_dir is None or not exists(model_dir):
        return None
    name = pointed(model_dir, "latest") or pointed(model_dir, "best")
    return "." if name is None and exists(join(model_dir, MANIFEST)) else name


def load(checkpoint: str) -> TrainedModel:
    """A bundle, with its training part where it has one. CheckpointError where it is damaged."""
    bundle = load_bundle(checkpoint)
    has_training = exists(join(checkpoint, TRAINING_STATE))
    return TrainedModel(bundle, load_training_state(checkpoint) if has_training else None)


def steps_to_make(position: int, steps: int | None, max_steps: int | None) -> int | None:
    """Steps of this fit; None where the data decide."""
    if steps is not None and max_steps is not None:
        raise ConfigError("give steps (from now on) or max_steps (from the very first), not both")
    for name, value in (("steps", steps), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, but is {value}")
    return max(max_steps - position, 0) if max_steps is not None else steps


class Every:
    """Says when `seconds` have passed since it last said so."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time; if so, the next interval begins."""
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True
