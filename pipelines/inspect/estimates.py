"""What training on these data will take: padding, steps and memory, computed from the plan that training follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.batches.plan import Plan
from model.columns import Numeric
from model.columns.config import source_of
from model.features.categorical import FittedHashBucket
from model.features.fit import Fitted
from model.features.fitted_columns import FittedColumns, iterate_sources
from model.features.numeric import FittedNumeric
from pipelines.config import RunConfig
from pipelines.inspect.column_profile import ColumnProfile
from pipelines.inspect.survey import Survey

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Estimates:
    """Padding is padded steps over real steps: 1 is none. Bytes are of inputs, labels and weights, not of activations.

    `longest_batch_bytes` are those of the padded batch with most steps; `encoded_bytes` of all rows once encoded.
    """

    batch_sequences: int | None
    batch_padded_steps: int | None
    steps_per_epoch: int
    real_steps: int
    padding: float
    padding_unsorted: float
    step_bytes: int
    encoded_bytes: int
    longest_batch_steps: int
    longest_batch_bytes: int


def estimates(survey: Survey, config: RunConfig) -> Estimates:
    """For a run over all rows of a survey, its validation rows among them."""
    from model.batches.encode import encoded_bytes  # loads torch and Ray Data

    assert survey.lengths is not None, "a run has sequences"
    index, train = survey.index, config.train
    plan = Plan(
        index,
        train.batch_sequences,
        seed=train.seed,
        window_batches=train.window_batches,
        batch_padded_steps=train.batch_padded_steps,
    )
    sizes, longest = batches(plan, survey.lengths)
    columns = _columns(survey, config)
    step_bytes = _step_bytes(columns)
    most = int((sizes * longest).max(initial=0))
    return Estimates(
        batch_sequences=train.batch_sequences,
        batch_padded_steps=train.batch_padded_steps,
        steps_per_epoch=len(sizes),
        real_steps=index.steps,
        padding=_over(int((sizes * longest).sum()), index.steps),
        padding_unsorted=unsorted_padding(survey.lengths, train.batch_sequences or int(sizes.mean()), train.seed),
        step_bytes=step_bytes,
        encoded_bytes=encoded_bytes(index, columns),
        longest_batch_steps=most,
        longest_batch_bytes=most * step_bytes,
    )


def batches(plan: Plan, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, longest length) of each batch of the first epoch."""
    steps = plan.steps_per_epoch
    order = np.concatenate([piece.rows for piece in plan.pieces(0, 1, 0, steps)])
    sizes = np.array([plan.batch_rows(step) for step in range(steps)])
    return sizes, np.maximum.reduceat(lengths[order], np.cumsum(sizes) - sizes)


def unsorted_padding(lengths: np.ndarray, batch_sequences: int, seed: int) -> float:
    """Padded over real steps where rows are only shuffled: what sorting by length is worth."""
    shuffled = lengths[np.random.default_rng(seed).permutation(len(lengths))]
    starts = np.arange(0, len(lengths), batch_sequences)
    sizes = np.diff(np.append(starts, len(lengths)))
    return _over(int((np.maximum.reduceat(shuffled, starts) * sizes).sum()), int(lengths.sum()))


def _over(padded: int, real: int) -> float:
    return padded / real if real else 1.0


def _columns(survey: Survey, config: RunConfig) -> FittedColumns:
    """The run's columns as if fitted: as wide as the data, which is all that sizes are computed from."""
    declared = config.model.columns
    sources: dict[str, Fitted] = {}
    for _, key, column in iterate_sources(declared):
        source = source_of(column)
        if isinstance(source, Numeric):
            width = source.dimension or _width(survey.columns[source.name])
            sources[key] = FittedNumeric(name=source.name, dimension=width, indicator=source.indicator)
        else:
            sources[key] = FittedHashBucket(name=source.name, buckets=1)
    return FittedColumns(columns=declared, sources=sources)


def _width(profile: ColumnProfile) -> int:
    return 1 if profile.widths is None else max(1, profile.widths[1])


def _step_bytes(columns: FittedColumns) -> int:
    """Of one step in a padded batch: each column's numbers or id, context among them, the label and the weight."""
    widths = (fitted.width if isinstance(fitted, FittedNumeric) else 1 for fitted in columns.sources.values())
    return FLOAT_BYTES * (sum(widths) + 2)
