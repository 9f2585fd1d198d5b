"""The original's model function on our network: one batch in one of three modes, without side effects.

Knows no data sets: features and labels are those of one batch, as `fit` and `predict` take them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch

from model.batches.collate import collate
from model.bundle.bundle import Bundle
from model.errors import ConfigError
from model.estimator.arguments import Declared
from model.estimator.row_sources import Encoder, Reader
from model.network import heads
from model.network.dropout import DropoutKey
from model.scoring.metrics import batch_state, results

Mode = Literal["train", "eval", "infer"]


class ModelOutputs(NamedTuple):
    """What the original's ModelFnOps held. `predictions` are tensors, padded to the batch's longest row.

    `loss` has gradients in mode train; `train_op` makes one step of the estimator on the batch. None or empty where
    the mode has none.
    """

    mode: Mode
    predictions: dict[str, torch.Tensor]
    loss: torch.Tensor | None
    train_op: Callable[[], Any] | None
    eval_metrics: dict[str, float]


class Estimator(Protocol):
    """What is needed of the estimator."""

    def fit(self, x: Any, y: Any, *, steps: int) -> Any: ...

    def fitted_bundle(self) -> Bundle: ...

    @property
    def feature_engineering_fn(self) -> Any: ...


def model_outputs(
    estimator: Estimator, declared: Declared, features: Any, labels: Any = None, mode: Mode = "infer"
) -> ModelOutputs:
    """Predictions and, with labels, loss and metrics of one batch. NotFittedError before the first fit."""
    if mode not in ("train", "eval", "infer"):
        raise ConfigError(f"mode must be 'train', 'eval' or 'infer', but is {mode!r}")
    if (labels is None) != (mode == "infer"):
        raise ConfigError(f"mode {mode!r} " + ("needs labels" if labels is None else "takes no labels"))
    bundle = estimator.fitted_bundle()
    network, label = bundle.network(), bundle.label
    rows = Reader(declared.model, estimator.feature_engineering_fn, labelled=labels is not None).rows(features, labels)
    spec = network.state_spec()
    batch = collate(Encoder(bundle.columns, None if labels is None else label, spec).encode(rows))
    training = mode == "train"
    with torch.set_grad_enabled(training):
        output = network(batch, dropout=DropoutKey(declared.run.seed, 0, batch.rows_B) if training else None)
    predictions = heads.predict(label, output.logits.detach(), probabilities=bundle.config.predict_probabilities)
    predictions |= {name: part.detach().flatten(1) for name, part in zip(spec.names, output.state, strict=True)}
    if batch.labels is None or batch.weights is None:
        return ModelOutputs(mode, predictions, None, None, {})
    losses = heads.loss(label, output.logits, batch.labels) * batch.weights
    loss = losses.sum() / batch.weights.sum()
    step = (lambda: estimator.fit(features, labels, steps=1)) if training else None
    metrics = results(label, batch_state(label, output.logits.detach(), batch))
    return ModelOutputs(mode, predictions, loss, step, metrics)
