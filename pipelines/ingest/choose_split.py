"""By what the rows of a path are split, and what is amiss with split and inputs: told before training, not after it.

What `prepare` knew of its sequences stands in the files' metadata; of other files some of it is guessed, and then told
as a guess. Knows no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from model.config import ModelConfig
from model.errors import ConfigError
from model.features.labels import PredictionType
from model.scan.key_candidates import SEQUENCE_INDEX, key_like
from model.scan.needed_columns import read_columns
from model.scan.split import SplitBy
from model.scan.split_by_time import split_by_time
from model.storage import exists, join, read_bytes, search_root
from model.tables.parquet import Found, read_footer
from pipelines.config import RunConfig

SUMMARY = "_SUMMARY.json"  # of `prepare`, beside what it wrote
MOST_NAMED = 3


@dataclass(frozen=True)
class Choice:
    """How rows are split (None: not at all), a line that tells it, and what to warn of."""

    split: SplitBy | None
    told: str = ""
    warnings: tuple[str, ...] = ()


def splits(config: RunConfig) -> bool:
    """Whether validation rows are split off the training rows."""
    return config.data.validation is None and config.data.validation_fraction > 0


def choose_split(config: RunConfig, found: Found) -> Choice:
    """By data.validation_by_time, data.key, the key that `prepare` wrote, or by rows."""
    data = config.data
    share = f"{data.validation_fraction * 100:.4g} %"
    if data.validation_by_time is not None:
        return _by_time(config, found, data.validation_by_time)
    root = search_root(data.train, [fragment.file for fragment in found.fragments])
    split = SplitBy(fraction=data.validation_fraction, key=data.key, root=root)
    if data.keys:
        return Choice(split, f"validation split: {share} of the keys {_named(data.keys)} (data.key)")
    keys = {each.key for each in found.prepared}
    if len(keys) == 1 and not found.unprepared_files:
        (key,) = keys
        if key:
            by_key = split.model_copy(update={"key": key[0] if len(key) == 1 else key})
            return Choice(by_key, f"validation split: {share} of the keys {_named(key)} (as `prepare` wrote them)")
        return Choice(split, f"validation split: {share} of the rows, pieces of one series")
    return Choice(split, f"validation split: {share} of the rows, each by itself", tuple(_of_rows(config, found)))


def _by_time(config: RunConfig, found: Found, time: str) -> Choice:
    data = config.data
    skip = data.on_bad_rows == "skip"
    split = split_by_time(found.fragments, time, data.validation_fraction, data.keys, data.where, skip_damaged=skip)
    since = _moment(found, time, split.since)
    if data.keys:
        told = f"the keys {_named(data.keys)} whose first row is of {time!r} = {since} or later"
    else:
        told = f"the rows of {time!r} = {since} or later, whatever entity they are of (data.key would keep it together)"
    return Choice(split, f"validation split: {told}")


def _moment(found: Found, time: str, since: int | float | None) -> str:
    """A time of the split as people write it."""
    schema = read_footer(found.fragments[0].file).schema.to_arrow_schema()
    kind = str(schema.field(time).type) if time in schema.names else ""
    return str(np.datetime64(int(since or 0), "us")) if kind.startswith(("timestamp", "date")) else str(since)


def _of_rows(config: RunConfig, found: Found) -> Iterator[str]:
    """What may be wrong with a split by rows."""
    names = key_like(found.fragments, config.model)
    if names:
        shown = " or ".join(repr(name) for name in names[:MOST_NAMED])
        yield (
            f"rows that share {shown} may stand in training and in validation, whose metrics are then too good: if it "
            f"names whose rows they are, set data.key={names[0]}"
        )
    elif SEQUENCE_INDEX in read_footer(found.fragments[0].file).schema.to_arrow_schema().names:
        yield (
            f"a {SEQUENCE_INDEX} says that rows are pieces of something, and these may stand in training and in "
            "validation, whose metrics are then too good: name the column whose pieces they are with data.key"
        )


def _named(key: tuple[str, ...]) -> str:
    return " and ".join(map(repr, key))


# The future among the inputs --------------------------------------------------------------------------------------


def future_inputs(config: ModelConfig, found: Found) -> Iterator[str]:
    """A line for each input that is known only when a sequence has ended, of a model that predicts before."""
    labels = [each.label for each in found.prepared if each.label is not None]
    ahead = any(label.column == config.label and label.shift for label in labels)
    if not ahead and config.prediction_type is not PredictionType.MULTIPLE_VALUE:
        return
    known_at_end = {name for each in found.prepared for name in each.known_at_end}
    if found.unprepared_files:
        known_at_end |= _last_times(read_footer(found.fragments[0].file).schema.to_arrow_schema().names)
    for name in read_columns(config, labelled=False):
        if name in known_at_end:
            yield (
                f"column {name!r} is known only when a sequence has ended, but the model predicts before: it sees the "
                "future, its metrics are too good, and predictions event by event will differ; leave it out of "
                "model.columns"
            )


def _last_times(names: list[str]) -> set[str]:
    """The times of the last events in sequences that earlier versions of `prepare` wrote."""
    stems = [name.removesuffix("_last") for name in names if name.endswith("_last")] if SEQUENCE_INDEX in names else []
    return {f"{stem}_last" for stem in stems if f"{stem}_first" in names}


# Parts of a split -------------------------------------------------------------------------------------------------


def refuse_mixed_parts(config: RunConfig, found: Found) -> None:
    """ConfigError where the training path holds several parts of a split that `prepare` made."""
    if config.data.mixed_parts:
        return
    parts: set[str] = {each.split for each in found.prepared if each.split is not None}
    if len(parts) < 2 and found.unprepared_files:
        parts = _parts_by_summary([fragment.file for fragment in found.fragments])
    if len(parts) > 1:
        ordered = [part for part in ("train", "validation", "test") if part in parts]
        others = [f"data.{part}" for part in ordered if part != "train"]
        raise ConfigError(
            f"data.train must hold one part of a split, but {config.data.train} holds {' and '.join(ordered)} as "
            f"`prepare` split them; name the directory of each: data.train{', '.join(['', *others])}, or train on all "
            "of them with data.mixed_parts=true"
        )


def _parts_by_summary(files: list[str]) -> set[str]:
    """The parts that files lie in, by the summary beside the parts: of sequences without metadata."""
    found: dict[str, set[str]] = {}
    for directory in dict.fromkeys(file.rpartition("/")[0] for file in files):
        above, _, name = directory.rpartition("/")
        found.setdefault(above, set()).add(name)
    for above, names in found.items():
        if len(names) < 2 or not exists(join(above, SUMMARY)):
            continue
        parts = names & set(json.loads(read_bytes(join(above, SUMMARY)))["sequences"])
        if len(parts) > 1:
            return parts
    return set()
