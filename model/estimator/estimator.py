"""DynamicRnnEstimator: the original's class, on one machine and data in memory or in Parquet files.

    estimator = DynamicRnnEstimator(
        ProblemType.CLASSIFICATION, PredictionType.SINGLE_VALUE, [real_valued_column("x")], num_classes=2, num_units=8
    )
    estimator.fit(x={"x": sequences}, y=labels, steps=100)
    predictions = list(estimator.predict(x={"x": sequences}))

It only translates: inputs become tables, and tables go through the one encoding, collate, trainer and plan that
clusters use. Padded arrays in, padded predictions out; lists, Arrow and pandas in, one array a row out.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch

from model.batches.collate import SequenceBatch, collate, length_batches
from model.bundle.bundle import Bundle
from model.columns import Column
from model.errors import ConfigError, NotFittedError
from model.estimator.arguments import Declared, EstimatorConfig, declare
from model.estimator.evaluation import evaluate, fed, hooked, progress_log
from model.estimator.learned import (
    AfterStep,
    Every,
    StepInfo,
    TrainedModel,
    as_declared,
    device_of,
    latest_name,
    load,
    save,
    start,
    steps_to_make,
    train,
    variables,
)
from model.estimator.model_fn import ModelOutputs, model_outputs
from model.estimator.outputs import Batch, chosen, concatenated, predictions_of, rows_in
from model.estimator.row_sources import (
    EVALUATION_BATCH,
    Dataset,
    Encoder,
    Engineering,
    Reader,
    Source,
    limited,
    planned_batches,
    prediction_rows,
    refuse_to_learn_from_batches,
)
from model.features.labels import PredictionType, ProblemType
from model.scan.fit import fit_columns
from model.scan.fragment_scan import scan_table
from model.scoring.scorer import Scorer
from model.scoring.stepper import Stepper
from model.settings import did_you_mean
from model.storage import join
from model.training.optimizers import Clip
from model.training.schedules import Schedule
from model.training.trainer import StepResult

Monitor = Callable[[StepInfo], object]
Path = str | os.PathLike[str]


class DynamicRnnEstimator:
    """A recurrent network over sequences, with the original's constructor and methods.

    `label` and `weight` name these columns in tables and files; `weight` may also be a feature. `config` holds seed,
    device and checkpointing (`EstimatorConfig`, or a mapping of its fields). `schedule` varies the learning rate:
    {"type": "cosine", "decay_steps": 1000, "warmup_steps": 50}. `optimizer` may also be code: see
    `model.training.torch_optimizers`. ConfigError, a ValueError, for any argument that cannot be.
    """

    def __init__(
        self,
        problem_type: ProblemType,
        prediction_type: PredictionType,
        sequence_feature_columns: Sequence[Column],
        context_feature_columns: Sequence[Column] | None = None,
        num_classes: int | str | None = None,
        num_units: int | Sequence[int] | None = None,
        cell_type: str | type = "basic_rnn",
        optimizer: str | type[torch.optim.Optimizer] | torch.optim.Optimizer | Callable[..., Any] = "SGD",
        learning_rate: float | None = 0.1,
        predict_probabilities: bool = False,
        momentum: float | None = None,
        gradient_clipping_norm: float | Clip | None = 5.0,
        dropout_keep_probabilities: Sequence[float | None] | None = None,
        model_dir: str | os.PathLike[str] | None = None,
        feature_engineering_fn: Engineering | None = None,
        config: EstimatorConfig | Mapping[str, Any] | None = None,
        *,
        label: str = "label",
        weight: str | None = None,
        schedule: Schedule | Mapping[str, Any] | None = None,
        class_weights: Mapping[Any, float] | None = None,
        standardize_label: bool = False,
    ) -> None:
        self.problem_type = problem_type
        self.prediction_type = prediction_type
        self.sequence_feature_columns = sequence_feature_columns
        self.context_feature_columns = context_feature_columns
        self.num_classes = num_classes
        self.num_units = num_units
        self.cell_type = cell_type
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.predict_probabilities = predict_probabilities
        self.momentum = momentum
        self.gradient_clipping_norm = gradient_clipping_norm
        self.dropout_keep_probabilities = dropout_keep_probabilities
        self.model_dir = model_dir
        self.feature_engineering_fn = feature_engineering_fn
        self.config = config
        self.label = label
        self.weight = weight
        self.schedule = schedule
        self.class_weights = class_weights
        self.standardize_label = standardize_label
        self._declared: Declared = declare(self.get_params())
        self._learned: TrainedModel | None = None
        self._name: str | None = None  # of the checkpoint that `_learned` is
        self._scorer: tuple[Bundle, Scorer] | None = None
        self._stepper: Stepper | None = None  # made at the first step after a change, for steps must be quick

    # Training ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        monitors: Iterable[Monitor] | None = None,
        max_steps: int | None = None,
    ) -> Self:
        """Trains, going on from what is in `model_dir` or in this object; returns itself.

        `steps` counts from there, `max_steps` from the very first; with neither, a data set is read once and an
        iterable to its end. `input_fn` returns one batch (features, labels), made anew for each step; an iterable of
        batches; or a table or a Parquet path, which like `x` are a data set: read in an order that depends on seed
        and step alone. Without `batch_size` a step takes all of `x`, or 32 rows of a table or path. A monitor is
        called with `StepInfo` after each step and stops the training by returning True.
        """
        source = self._reader(labelled=True).open(x, y, input_fn, batch_size)
        learned = self._restored()
        begin = learned.position if learned is not None else 0
        count = steps_to_make(begin, steps, max_steps)
        if count == 0:
            return self
        if count is None and not isinstance(source, Dataset) and source.repeats:
            raise ConfigError("steps or max_steps must say how often the batch of input_fn is trained on")
        batches, learned = self._training_batches(source, learned, count)
        self._learned = train(learned, self._declared, batches, self._after_step(tuple(monitors or ())))
        self._stepper = None
        self._save(self._learned)
        return self

    def partial_fit(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        steps: int = 1,
        batch_size: int | None = None,
        monitors: Iterable[Monitor] | None = None,
    ) -> Self:
        """`fit` for one step, or `steps` of them."""
        return self.fit(x, y, input_fn, steps, batch_size, monitors)

    def _training_batches(
        self, source: Source, learned: TrainedModel | None, count: int | None
    ) -> tuple[Iterator[SequenceBatch], TrainedModel]:
        """The batches of the steps to make, and the model to begin with."""
        if isinstance(source, Dataset):
            scans = source.scan(self._declared.model, fit=learned is None)
            if learned is None:
                learned = start(self._declared, *fit_columns(self._declared.model, scans))
            encoded = source.encode(self._encoder(learned, labelled=True))
            plan = source.plan(
                encoded,
                batch_sequences=source.batch_sequences or len(encoded),
                seed=self._declared.run.seed,
                window_batches=self._declared.run.window_batches,
            )
            steps = plan.steps_per_epoch if count is None else count
            return limited(planned_batches(encoded, plan, learned.position), steps), learned
        rows = source.batches()
        first = next(rows, None)
        if first is None:
            raise ConfigError("input_fn must yield at least one batch, but yields none")
        if learned is None:
            refuse_to_learn_from_batches(self._declared.model)
            scan = scan_table(first.table, self._declared.model, None, fit=True, place="")
            learned = start(self._declared, *fit_columns(self._declared.model, [scan]))
        encoder = self._encoder(learned, labelled=True)
        rest = limited(rows, None if count is None else count - 1)
        return (collate(encoder.encode(each)) for part in ([first], rest) for each in part), learned

    def _after_step(self, monitors: tuple[Monitor, ...]) -> AfterStep:
        clock = Every(self._declared.run.save_checkpoints_seconds)

        def after(position: int, result: StepResult, learned: Callable[[], TrainedModel]) -> bool:
            def publish() -> None:
                self._learned, self._stepper = learned(), None

            info = StepInfo(position, result.loss, result.gradient_norm, publish, lambda: self._save(learned()))
            if clock.due():
                info.save()
            answers = [monitor(info) for monitor in monitors]  # each is told, whoever stops
            return any(answer is True for answer in answers)

        return after

    # Evaluation --------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        feed_fn: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        name: str | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        hooks: Iterable[Callable[[int], object]] | None = None,
        log_progress: bool = True,
    ) -> dict[str, float]:
        """Metrics over all rows, each weighing the same however they are batched; `global_step` among them.

        `steps` stops after so many batches; `feed_fn` gives one batch a call, `steps` times. `metrics` adds the
        user's by name: functions of (labels, predictions, weights), or objects of torchmetrics. `hooks` are told the
        number of each batch; `log_progress` logs it, under `name`. NotFittedError before the first fit.
        """
        source = self._reader(labelled=True).open(x, y, fed(x, input_fn, feed_fn, steps), batch_size)
        learned = self._trained(checkpoint_path)
        network = learned.bundle.network().to(device_of(self._declared.run))
        told = (*(hooks or ()), *((progress_log(name, steps),) if log_progress else ()))
        batches = hooked(self._evaluation_batches(source, learned, steps), told)
        return evaluate(network, learned.bundle.label, batches, metrics) | {"global_step": learned.position}

    def _evaluation_batches(self, source: Source, learned: TrainedModel, steps: int | None) -> Iterator[SequenceBatch]:
        encoder = self._encoder(learned, labelled=True)
        if not isinstance(source, Dataset):
            count = 1 if steps is None and source.repeats else steps
            return (collate(encoder.encode(rows)) for rows in limited(source.batches(), count))
        encoded, size = source.encode(encoder), source.batch_sequences
        if steps is not None:
            encoded = encoded.slice(0, min(len(encoded), steps * (size or len(encoded))))
        return length_batches(encoded, size or EVALUATION_BATCH)

    # Prediction --------------------------------------------------------------------------------------------------

    def predict(
        self,
        x: Any = None,
        input_fn: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        outputs: Sequence[str] | None = None,
        as_iterable: bool = True,
        iterate_batches: bool = False,
    ) -> Any:
        """Predictions and final states for all rows of the input.

        A generator of one dict a row; of one a batch with `iterate_batches`; or a single dict of all rows with
        `as_iterable=False`. Keys: `classes` (and `probabilities`) or `scores`, and `rnn_cell_state_i`, which can be
        fed back as features. NotFittedError before the first fit.
        """
        learned = self._trained()
        parts = prediction_rows(self._reader(labelled=False), x, input_fn, batch_size)
        scorer = self._scorer_of(learned.bundle)
        batches = (chosen(self._predicted(scorer, rows.table, rows.padded_steps), outputs) for rows in parts)
        if not as_iterable:
            return concatenated(list(batches))
        return batches if iterate_batches else (row for batch in batches for row in rows_in(batch))

    @staticmethod
    def _predicted(scorer: Scorer, table: Any, padded_steps: int | None) -> Batch:
        scored = scorer.score(table)
        return predictions_of(scored, scorer.state_spec, per_step=scorer.label.per_step, padded_steps=padded_steps)

    def step(self, features: Any, state: Any = None) -> tuple[Any, Any]:
        """One event in O(1): (predictions, next state) from an event's features and the state before it.

        `features` is a dict of plain values; predictions then are plain values and the state a dict of
        `rnn_cell_state_i` arrays. Or a tensor [B, D] of ready network input; predictions then are logits [B, K] and
        the state a tuple of tensors.
        """
        stepper = self._stepper
        if stepper is None:
            stepper = self._stepper = Stepper(self._trained().bundle)
        if isinstance(features, torch.Tensor):
            return stepper.tensors(features, state)
        return stepper.event(features, state)

    # Parameters and variables ------------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name, as they were given."""
        return {name: getattr(self, name) for name in _parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Changes constructor arguments; ConfigError for unknown names and for values that cannot be."""
        known = _parameter_names()
        for name in params:
            if name not in known:
                hint = did_you_mean(name, known) or f"; they are {', '.join(known)}"
                raise ConfigError(f"{name!r} is no parameter{hint}")
        self._declared = declare(self.get_params() | params)
        for name, value in params.items():
            setattr(self, name, value)
        self._stepper = None
        return self

    def get_variable_names(self) -> list[str]:
        """Sorted names of what a checkpoint holds: weights, optimizer slots, `global_step`, `learning_rate`."""
        return sorted(variables(self._trained()))

    def get_variable_value(self, name: str) -> np.ndarray:
        """The value of a variable; ConfigError for an unknown name."""
        held = variables(self._trained())
        if name not in held:
            raise ConfigError(f"{name!r} is no variable{did_you_mean(name, list(held))}")
        return held[name]

    @property
    def model_fn(self) -> Callable[..., ModelOutputs]:
        """The original's model function: (features, labels, mode) to predictions, loss, training step and metrics."""
        return partial(model_outputs, self, self._declared)

    def fitted_bundle(self) -> Bundle:
        """The model as a bundle: what scoring, serving and export take. NotFittedError before the first fit."""
        return self._trained().bundle

    # What is trained ---------------------------------------------------------------------------------------------

    def _reader(self, *, labelled: bool) -> Reader:
        return Reader(self._declared.model, self.feature_engineering_fn, labelled=labelled)

    def _encoder(self, learned: TrainedModel, *, labelled: bool) -> Encoder:
        bundle = learned.bundle
        return Encoder(bundle.columns, bundle.label if labelled else None, self._scorer_of(bundle).state_spec)

    def _restored(self) -> TrainedModel | None:
        """The model so far: what `model_dir` holds where there is one, else what this object has trained."""
        model_dir = self._declared.run.model_dir
        newest = latest_name(model_dir)
        if newest is not None and newest != self._name:
            self._learned, self._name = load(join(str(model_dir), newest)), newest
            self._stepper = None
        if self._learned is not None:
            self._learned = as_declared(self._learned, self._declared)
        return self._learned

    def export(
        self,
        directory: Path,
        *,
        assets_extra: Mapping[str, Path] | None = None,
        checkpoint_path: Path | None = None,
    ) -> str:
        """Writes bundle, ONNX graphs and `step.pt2` to a new directory and returns it; see `model.export.export`.

        NotFittedError before the first fit; ConfigError without the packages of the extra `onnx`.
        """
        from model.export.export import export

        return export(self._trained(checkpoint_path).bundle, directory, assets_extra=assets_extra)

    def export_savedmodel(
        self,
        export_dir_base: Path,
        serving_input_fn: Callable[[], Any] | None = None,
        default_output_alternative_key: str | None = None,
        assets_extra: Mapping[str, Path] | None = None,
        as_text: bool = False,
        checkpoint_path: Path | None = None,
        graph_rewrite_specs: Any = None,
        strip_default_attrs: bool = False,
    ) -> str:
        """`export` to a directory below `export_dir_base` that is named by the time; returns it.

        The graphs' inputs and outputs, states included, are those in `signature.json`. `serving_input_fn`,
        `default_output_alternative_key`, `graph_rewrite_specs` and `strip_default_attrs`, which chose them in the
        original, are taken and have no effect.
        """
        from model.export.export import export_below

        if as_text:
            raise ConfigError("as_text must be False: ONNX graphs are binary; signature.json is the text beside them")
        return export_below(export_dir_base, self._trained(checkpoint_path).bundle, assets_extra)

    def _trained(self, checkpoint: Path | None = None) -> TrainedModel:
        """The model to use: `checkpoint`, or the one so far. NotFittedError where there is none."""
        if checkpoint is not None:
            return as_declared(load(str(checkpoint)), self._declared)
        learned = self._restored()
        if learned is None:
            where = f"model_dir {self.model_dir} holds no checkpoint" if self.model_dir else "there is no model_dir"
            raise NotFittedError(f"the estimator must be fitted first; {where} and fit has not been called")
        return learned

    def _save(self, learned: TrainedModel) -> None:
        run = self._declared.run
        if run.model_dir is not None:
            save(run.model_dir, learned, run.keep_checkpoints)
            self._name = latest_name(run.model_dir)

    def _scorer_of(self, bundle: Bundle) -> Scorer:
        if self._scorer is None or self._scorer[0] is not bundle:
            self._scorer = (bundle, Scorer(bundle, device=str(device_of(self._declared.run))))
        return self._scorer[1]

    def __repr__(self) -> str:
        given = {name: value for name, value in self.get_params().items() if value is not None}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _parameter_names() -> list[str]:
    names = inspect.signature(DynamicRnnEstimator.__init__).parameters
    return [name for name in names if name != "self"]
