"""A run's YAML for data as they were found: complete, commented, and accepted by `dynamic-rnn train` as it is.

The rules are plain and stand in the comments: what a person would change first is easy to find. Knows no torch, no Ray.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from model.errors import ConfigError
from model.scan.split import SplitBy, training_rows
from model.settings.yaml_text import dump_line, parse_yaml
from pipelines.config import RunConfig, run_config
from pipelines.inspect.column_profile import BOOLEAN, ColumnProfile
from pipelines.inspect.findings import ERROR, events_text, findings, is_classification
from pipelines.inspect.label_leaks import leaking_columns
from pipelines.inspect.profile_task import Disagreement
from pipelines.inspect.roles import (
    CATEGORICAL,
    CONTEXT,
    LABEL,
    MOST_CLASSES,
    MOST_UNALIGNED,
    NAMED,
    SEQUENCE,
    UNUSED,
    WEIGHT,
    Role,
)
from pipelines.inspect.sketches import value_order
from pipelines.inspect.survey import Survey

MOST_ONE_HOT = 12  # distinct values that get a column each
MOST_VOCABULARY = 1 << 16  # distinct values that are learned by heart; more are hashed
RARE_KEYS = 1000  # distinct values from which those seen once are no keys
MOST_DIMENSION = 64
MOST_CLASSES_WRITTEN = 50
FEW_ROWS = 100  # fewer are not split; so few keys are tried
FRACTION = 0.1
BATCH_SEQUENCES = 64
PASSES, LEAST_STEPS, MOST_STEPS = 30, 300, 5000
LEFT_OUT = "left out"


@dataclass(frozen=True)
class Proposal:
    """`text` is the YAML, None where there is nothing to train; then `reason` says why."""

    text: str | None
    config: RunConfig | None
    reason: str = ""


def propose(survey: Survey, *, values: bool = True) -> Proposal:
    """A run for the data of a survey. `values` may be named in it: else classes are not listed."""
    reason = _hindrance(survey)
    if reason is not None:
        return Proposal(None, None, reason)
    text = "\n".join(_lines(survey, values=values)) + "\n"
    try:
        return Proposal(text, run_config(parse_yaml(text, where="the proposal"), where="the proposal"))
    except ConfigError as error:
        return Proposal(None, None, f"no settings fit these data: {error}")


def _hindrance(survey: Survey) -> str | None:
    """Why no run can be proposed, and what to do; None where one can."""
    if survey.look.reference is None:
        return events_text(survey)
    if not any(role.role == SEQUENCE for role in survey.roles.values()):
        unread = [
            f"{name!r}: {role.reason}"
            for name, role in survey.roles.items()
            if role.role == UNUSED and survey.columns[name].depth
        ]
        if unread:
            return f"no column of lists can be read as sequences ({'; '.join(unread[:5])})"
        return "no column holds lists that a model could read as sequences; `dynamic-rnn prepare` makes them of events"
    if survey.label.name is None:
        return survey.label.reason
    if not _inputs(survey, SEQUENCE):
        return (
            "each sequence column is constant or gives the label away: add columns that change, or name another --label"
        )
    return _hindrance_of_label(survey, survey.label.name, survey.columns[survey.label.name])


def _hindrance_of_label(survey: Survey, name: str, profile: ColumnProfile) -> str | None:
    other = "name another with --label"
    if not profile.distinct.count:
        return f"the label {name!r} holds no value: {other}"
    if profile.depth > 1 or profile.fixed:
        return f"the label {name!r} holds lists of lists: it must hold one value a row or a step; {other}"
    if profile.kind not in ("number", "string", "boolean"):
        types = " and ".join(profile.types)
        return f"the label {name!r} must hold numbers or strings, but is {types}: write it as one, or {other}"
    if profile.distinct.count < 2:
        what = "class" if is_classification(survey) else "value"
        return f"the label {name!r} has one {what} only: there is nothing to learn; {other}"
    if profile.depth and survey.disagreements.get(name, Disagreement()).rows > MOST_UNALIGNED * survey.rows:
        return (
            f"the label {name!r} is not as long as the lists of {survey.look.reference!r} in "
            f"{survey.disagreements[name].rows:,} of {survey.rows:,} rows: name the columns to read with --columns, or "
            f"{other}"
        )
    return None


# The parts of the file ------------------------------------------------------------------------------------------


def _lines(survey: Survey, *, values: bool) -> Iterator[str]:
    yield f"# Proposed by `dynamic-rnn inspect` from {survey.rows:,} rows: a start that trains, not the best model."
    yield "# `dynamic-rnn settings train` explains a section; override any: dynamic-rnn train run.yaml train.steps=100"
    yield dump_line({"name": _run_name(survey.root)})
    yield "output: runs"
    yield ""
    yield "data:"
    yield f"  {dump_line({'train': survey.data})}"
    yield from _split_lines(survey)
    yield from _bad_row_lines(survey)
    yield ""
    yield "model:"
    yield from _label_lines(survey, values=values)
    yield "  cell_type: lstm                   # or gru, basic_rnn; `dynamic-rnn tune` compares"
    yield f"  num_units: [{_units(survey.rows)}]"
    yield "  columns:"
    yield from _column_lines(survey, SEQUENCE, "values a step")
    yield from _column_lines(survey, CONTEXT, "values a row, seen at each step")
    yield from _left_out(survey)
    yield ""
    yield from _train_lines(survey)


def _run_name(data: str) -> str:
    stem = PurePosixPath(data.partition("?")[0].rstrip("/")).stem
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"


def _split_lines(survey: Survey) -> Iterator[str]:
    key = survey.key.name or (survey.key_like[0] if survey.key_like is not None else None)
    for part in ("validation", "test"):
        if part in survey.parts:
            yield f"  {dump_line({part: survey.parts[part]})}"
    if "validation" not in survey.parts:
        fraction, why = _fraction(survey, key)
        yield f"  validation_fraction: {fraction}" + (f"            # {why}" if why else "")
        if not fraction:
            return
    if key is not None:
        yield f"  {dump_line({'key': key})}  # its rows never straddle the split"


def _fraction(survey: Survey, key: str | None) -> tuple[float, str]:
    """The share of keys (or rows) that validate, and why it is not a tenth: some must, and some must train."""
    if survey.rows < FEW_ROWS:
        return 0, f"{survey.rows} rows are few: all of them train"
    values = [] if key is None else list(survey.columns[key].top.counts)
    if key is None or len(values) != survey.columns[key].distinct.count or len(values) > FEW_ROWS:
        return FRACTION, ""
    table = pa.table({key: pa.array([int(value) if isinstance(value, float) else value for value in values])})
    for fraction in (FRACTION, 0.2, 0.3, 0.5):
        training = training_rows(table, SplitBy(fraction=fraction, key=key), "")
        if training.any() and not training.all():
            return fraction, "" if fraction == FRACTION else f"of {len(values)} keys, a tenth may be none"
    return 0, f"{len(values)} keys are few: all of them train"


def _bad_row_lines(survey: Survey) -> Iterator[str]:
    """Rows that training refuses would end it: the proposal leaves them out, and says so."""
    if any(finding.severity == ERROR for finding in findings(survey, values=False)):
        yield "  on_bad_rows: skip                # counted and set aside: see the errors that inspect tells"


def _label_lines(survey: Survey, *, values: bool) -> Iterator[str]:
    name = survey.label.name
    assert name is not None, "a proposal has a label"
    profile = survey.columns[name]
    kind = "multiple_value    # a label a step" if profile.depth else "single_value      # a label a row"
    classification = is_classification(survey)
    yield f"  problem_type: {'classification' if classification else 'linear_regression'}"
    yield f"  prediction_type: {kind}"
    yield f"  {dump_line({'label': name})}{_comment('' if survey.label.reason == NAMED else survey.label.reason)}"
    weight = next((column for column, role in survey.roles.items() if role.role == WEIGHT), None)
    if weight is not None:
        yield f"  {dump_line({'weight': weight})}{_comment(survey.roles[weight].reason)}"
    if classification:
        yield from _class_lines(survey, profile, values=values)
        if profile.distinct.count <= MOST_CLASSES:
            yield "  predict_probabilities: true"
    else:
        yield "  standardize_label: true           # trained on (label - mean) / deviation"


def _class_lines(survey: Survey, profile: ColumnProfile, *, values: bool) -> Iterator[str]:
    known = sorted([*profile.top.counts, *survey.late_classes], key=value_order)
    count = len(known)
    if not profile.distinct.exact or profile.top.error or count > MOST_CLASSES:
        yield f"  num_classes: auto                 # about {profile.distinct.count:,} values: many for classes"
        return
    classes = [int(value) if profile.whole or isinstance(value, bool) else value for value in known]
    late = f"{len(survey.late_classes)} of them in the validation part alone" if survey.late_classes else ""
    if classes == list(range(count)) or profile.kind == BOOLEAN:
        yield f"  num_classes: {max(count, 2)}{_comment(late)}"
    elif values and count <= MOST_CLASSES_WRITTEN:
        yield f"  {dump_line({'classes': classes})}{_comment(late)}"
    else:
        yield f"  num_classes: auto                 # {count} classes, learned from the training rows"


def _units(rows: int) -> int:
    return 32 if rows < 1000 else 64 if rows < 100_000 else 128


def _train_lines(survey: Survey) -> Iterator[str]:
    batch = max(1, min(BATCH_SEQUENCES, survey.rows // 4))
    per_epoch = max(1, survey.rows // batch)
    yield "train:"
    steps = min(MOST_STEPS, max(LEAST_STEPS, PASSES * per_epoch))
    yield f"  steps: {steps}{_comment(f'about {steps / per_epoch:,.1f} passes over the rows')}"
    yield f"  evaluate_every_steps: {steps // 4}"
    yield f"  batch_sequences: {batch}"
    yield "  optimizer: Adam"
    yield "  learning_rate: 2.0e-3"
    yield "  gradient_clipping_norm: 5.0"


# Columns --------------------------------------------------------------------------------------------------------


def _inputs(survey: Survey, group: str) -> list[str]:
    leaking = leaking_columns(survey)
    return [
        name
        for name, role in survey.roles.items()
        if role.role == group and name not in leaking and survey.columns[name].distinct.count > 1
    ]


def _column_lines(survey: Survey, group: str, told: str) -> Iterator[str]:
    names = _inputs(survey, group)
    if not names:
        return
    yield f"    {group}:{'':<{26 - len(group)}} # {told}"
    for name in names:
        declared, comment = declaration(
            name, survey.columns[name], survey.roles[name], absent=survey.absent.get(name, 0)
        )
        yield f"      - {_flow(declared)}{_comment(comment)}"


def declaration(name: str, profile: ColumnProfile, role: Role, *, absent: int = 0) -> tuple[dict[str, Any], str]:
    """(the column's declaration, a comment that says why it is so); `absent` rows stand in files without the column."""
    if role.reads == CATEGORICAL:
        return _categorical(name, profile)
    declared: dict[str, Any] = {"type": "numeric", "name": name}
    comments = []
    if profile.kind != BOOLEAN:
        declared["normalizer"] = "zscore"
    if profile.widths is not None:
        comments.append(f"{profile.widths[1]} numbers each")
    nan, nulls = profile.counts["nan"], profile.missing_inside + absent
    if nan or nulls:
        declared |= {"missing": "mean", "indicator": True} | ({"nan_is_missing": True} if nan else {})
        told = " and ".join(f"{count:,} {what}" for count, what in ((nulls, "nulls"), (nan, "NaN")) if count)
        comments.append(f"{told} become the mean, and an indicator says so")
    return declared, "; ".join(comments)


def _categorical(name: str, profile: ColumnProfile) -> tuple[dict[str, Any], str]:
    count = profile.distinct.count
    about = f"{count:,} values" if profile.distinct.exact else f"about {count:,} values"
    if count > MOST_VOCABULARY:
        buckets = 1 << math.ceil(math.log2(count))
        source: dict[str, Any] = {"type": "hash_bucket", "name": name, "buckets": buckets}
        about += ": hashed rather than learned by heart"
    else:
        source = {"type": "vocabulary", "name": name}
        if count > RARE_KEYS:
            source["min_count"] = 2
            about += ": those seen once are unknown ones"
    if count <= MOST_ONE_HOT:
        return {"type": "one_hot", "source": source}, about
    return {"type": "embedding", "dimension": dimension(count), "source": source}, about


def dimension(distinct: int) -> int:
    """Width of an embedding: 1.6 · n^0.56, the rule of thumb of fastai, rounded to a multiple of 4 and bounded."""
    width = 1.6 * math.pow(distinct, 0.56)
    return min(MOST_DIMENSION, max(4, 4 * round(width / 4)))


def _left_out(survey: Survey) -> Iterator[str]:
    leaking = leaking_columns(survey)
    for name, role in survey.roles.items():
        if role.role in (SEQUENCE, CONTEXT):
            if name in leaking:
                yield f"    # {LEFT_OUT}: {_plain(name)} gives the label away"
            elif survey.columns[name].distinct.count <= 1:
                yield f"    # {LEFT_OUT}: {_plain(name)} has one value only"
        elif role.role not in (LABEL, WEIGHT):
            yield f"    # {LEFT_OUT}: {_plain(name)}: {role.reason or f'is the {role.role}'}"


def _flow(declared: dict[str, Any]) -> str:
    parts = (
        f"{key}: {_flow(value)}" if isinstance(value, dict) else dump_line({key: value})
        for key, value in declared.items()
    )
    return "{" + ", ".join(parts) + "}"


def _comment(text: str) -> str:
    return f"  # {_plain(text)}" if text else ""


def _plain(text: str) -> str:
    """Text on one line, without signs that would end a YAML comment."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
