"""What is suspicious in the data: one sentence each, with where and what to do. Knows no torch, no Ray.

Severities: "error" is what training refuses, "warning" what makes a model worse or its metrics untrue, "note" what is
good to know. Texts name values of the data only where values may be shown.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.columns import data_columns
from model.columns.config import source_of
from model.config import ModelConfig
from model.features.fitted_columns import iterate_sources
from model.scan.needed_columns import optional_columns
from pipelines.inspect.column_profile import MOST_PLACES, NARROWEST, NUMBER, OTHER, WIDEST, ColumnProfile, Places
from pipelines.inspect.label_leaks import leak_findings
from pipelines.inspect.patterns import may_be_ids
from pipelines.inspect.roles import (
    AT_END,
    BY_NAME,
    CATEGORICAL,
    CONTEXT,
    FEW_NUMBERS,
    KEY,
    LABEL,
    MOST_CLASSES,
    MOST_UNALIGNED,
    NAMED,
    NUMERIC,
    SEQUENCE,
    SEQUENCE_INDEX,
    UNUSED,
    label_source,
    near_unique,
    reading_of,
)
from pipelines.inspect.row_faults import Damage
from pipelines.inspect.survey import Survey
from pipelines.report.formatting import share

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
MOST_NAMED = 10  # damaged row groups of a file
MOST_TIES = 0.01  # of the events: more of them make a model learn the order of files
RARE_CLASS = 10  # labels; fewer teach little and are lost in a split
DOMINANT_CLASS = 0.95
LONG_TAIL = 10  # times the 99th percentile
EPOCHS = (("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))
YEAR_2000, YEAR_2050 = 946_684_800, 2_524_608_000


@dataclass(frozen=True)
class Finding:
    """One suspicious thing. `code` is stable, for machines; `places` are rows that show it."""

    severity: str
    code: str
    column: str | None
    text: str
    places: Places = field(default_factory=Places)

    def to_plain(self) -> dict[str, Any]:
        """Plain data for the report."""
        places = [{"file": file, "row": row} for file, row in self.places.found]
        named = {"severity": self.severity, "code": self.code, "column": self.column, "text": self.text}
        return {**named, "places": places}


def findings(survey: Survey, *, values: bool = True) -> list[Finding]:
    """All that is suspicious, worst first, else in the order of the columns. `values` may be named in the texts."""
    found = [*_of_damages(survey), *_of_rows(survey, values=values), *_of_parts(survey), *_of_lengths(survey)]
    found += [*_of_keys(survey), *_of_ends(survey)]
    for name, profile in survey.columns.items():
        found += _of_column(survey, name, profile, values=values)
    found += _of_label(survey, values=values)
    found += [Finding(*told) for told in leak_findings(survey)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


# Rows -----------------------------------------------------------------------------------------------------------


def _of_damages(survey: Survey) -> Iterator[Finding]:
    """One finding a damaged file."""
    files: dict[str, list[Damage]] = {}
    for damage in survey.damages:
        files.setdefault(damage.file, []).append(damage)
    for file, damages in files.items():
        numbers = ", ".join(str(damage.row_group) for damage in damages[:MOST_NAMED])
        more = f" and {len(damages) - MOST_NAMED:,} more" if len(damages) > MOST_NAMED else ""
        rows = rows_of(sum(damage.rows for damage in damages))
        reason = re.sub(r"^row group \d+ ", "", damages[0].problem)
        text = f"row group{'s' if len(damages) > 1 else ''} {numbers}{more} of {file} with {rows} {reason}"
        cure = "training stops there, unless `data.on_bad_rows: skip` leaves them out"
        places = Places(tuple((file, damage.first_row) for damage in damages[:MOST_PLACES]))
        yield Finding(ERROR, "damaged", None, f"{text}; {cure}", places)


def _of_rows(survey: Survey, *, values: bool) -> Iterator[Finding]:
    for (column, wording), count in survey.faults.counts.items():
        examples = survey.faults.examples[column, wording]
        told = examples[0].problem if values else wording
        places = Places(tuple((example.file, example.row) for example in examples if example.row is not None))
        text = f"training refuses {count:,} of {rows_of(survey.rows)}: {told}"
        yield Finding(ERROR, "refused-rows", column, text, places)
    for name, count in survey.absent.items():
        used = survey.roles[name].role != UNUSED
        text = f"is missing in files with {count:,} of {rows_of(survey.rows)}"
        yield Finding(WARNING if used else NOTE, "absent-column", name, text)


def rows_of(count: int) -> str:
    """A number of rows in words."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _of_parts(survey: Survey) -> Iterator[Finding]:
    if survey.parts:
        names = " and ".join(survey.parts)
        text = f"{survey.root} holds the parts of a split, {names}: the training part is inspected, a run names each"
        yield Finding(NOTE, "split-parts", None, text)
    elif survey.mixed:
        text = "parts of a split are read as one, so that a model would train on what validates or tests it: name the "
        yield Finding(WARNING, "split-parts", None, f"{text}directory that holds all parts, or the training part alone")


def _of_lengths(survey: Survey) -> Iterator[Finding]:
    for name, told in survey.disagreements.items():
        role = survey.roles[name]
        if told.rows and role.role in (SEQUENCE, LABEL):
            yield Finding(
                ERROR,
                "lengths-disagree",
                name,
                f"in {rows_of(told.rows)} its list is not as long as that of {survey.look.reference!r}: all sequence "
                f"columns of a row must be equally long",
                told.places,
            )
        elif role.role == UNUSED and told.rows > MOST_UNALIGNED * survey.rows:
            text = f"in {told.rows:,} of {rows_of(survey.rows)} its list is not as long as that of "
            text += f"{survey.look.reference!r}: it is no sequence of theirs, and left out"
            yield Finding(WARNING, "unaligned", name, text, told.places)
    if survey.lengths is None or not len(survey.lengths):
        yield from _of_events(survey)
    else:
        yield from _of_length_values(survey.lengths)


def _of_events(survey: Survey) -> Iterator[Finding]:
    yield Finding(NOTE, "event-table", None, events_text(survey))
    ties = survey.ties
    if ties is not None and ties.tied:
        text = f"{share_of(ties.tied, ties.events)} events have the time of another event of their key: the order of "
        text += (
            f"files and rows decides {share_of(ties.decided, ties.labels)} next values, those that `--label-shift 1` "
        )
        text += f"would make labels; name what orders them, too: `--time {survey.look.time},COLUMN`"
        severity = WARNING if ties.tied > MOST_TIES * ties.events else NOTE
        yield Finding(severity, "ties", survey.look.time, text)


def share_of(part: int, whole: int) -> str:
    """A part of a whole in words: 51 of 100 (51 %)."""
    return f"{part:,} of {whole:,} ({share(part, whole)})"


def events_text(survey: Survey) -> str:
    """Why these rows are events rather than sequences, and the command that makes sequences of them."""
    lists = [name for name, told in survey.columns.items() if told.depth and not (told.fixed and told.depth == 1)]
    nested = [f"{name!r} is {next(iter(told.types))}" for name, told in survey.columns.items() if told.kind == OTHER]
    if lists:
        names = ", ".join(map(repr, lists[:3]))
        why = f"each row looks like one event, whose {names} holds several values (else name columns with --columns)"
    elif nested:
        why = f"no column holds lists that can be read ({'; '.join(nested[:3])}): if each row is one event"
    else:
        why = "no column holds lists: if each row is one event"
    return f"{why}, make sequences of them with `{prepare_command(survey)}`"


def prepare_command(survey: Survey) -> str:
    """The command line for an event table, with COLUMN for what could not be guessed."""
    key, time, label = survey.look.key[:1], survey.look.time, survey.label.name
    words = ["dynamic-rnn", "prepare", shlex.quote(survey.root), "sequences"]
    for option, name in (("--key", key[0] if key else None), ("--time", time)):
        words += [option, "COLUMN" if name is None else shlex.quote(name)]
    if label is not None and label not in (*key, time) and survey.label.reason in (NAMED, BY_NAME):
        words += ["--label", shlex.quote(label), "--label-shift", "1"]
    return " ".join(words)


def _of_length_values(lengths: np.ndarray) -> Iterator[Finding]:
    empty, longest = int((lengths == 0).sum()), int(lengths.max())
    most = int(np.quantile(lengths, 0.99, method="inverted_cdf"))
    if empty:
        severity = WARNING if empty > 0.01 * len(lengths) else NOTE
        yield Finding(
            severity,
            "empty-sequences",
            None,
            f"{empty:,} of {rows_of(len(lengths))} {'has' if empty == 1 else 'have'} no step",
        )
    if longest == 1:
        yield Finding(WARNING, "single-steps", None, "no sequence has more than one step: there is no order to learn")
    elif longest > LONG_TAIL * max(most, 1):
        yield Finding(
            WARNING,
            "long-tail",
            None,
            f"the longest sequence has {longest:,} steps, but 99 % have at most {most:,}: a batch needs the memory of "
            f"its longest row; cut long ones (`dynamic-rnn prepare --max-length`)",
        )


def _of_keys(survey: Survey) -> Iterator[Finding]:
    if survey.key_like is not None and survey.lengths is not None:
        name, why = survey.key_like
        text = f"seems to name whose rows these are ({why}): the proposal splits by it (data.key), so that no entity "
        yield Finding(
            WARNING, "key-like", name, f"{text}trains and validates; name another with --key, or remove data.key"
        )
    keys = survey.keys
    if survey.lengths is None or keys is None or not keys.duplicates:
        return
    told = f"{keys.duplicates:,} of {survey.rows:,} rows repeat a key that another row has"
    if len(keys.columns) > 1:
        names = " and ".join(map(repr, keys.columns))
        text = f"{told}: {names} together must name one row; batch prediction refuses others"
        yield Finding(WARNING, "duplicate-keys", keys.columns[0], text)
    else:
        text = (
            f"{told} ({keys.distinct:,} keys): name it as data.key, so that no key stands in training and "
            f"validation alike, and give pieces of one sequence a {SEQUENCE_INDEX!r}"
        )
        yield Finding(NOTE if keys.distinct < 0.5 * survey.rows else WARNING, "duplicate-keys", keys.columns[0], text)


def _of_ends(survey: Survey) -> Iterator[Finding]:
    """Columns that tell a model within a sequence how it ends."""
    for name in survey.columns:
        role = survey.roles[name].role
        if name in survey.at_end and role in (SEQUENCE, CONTEXT):
            yield Finding(WARNING, "known-at-end", name, f"is {AT_END}; take it out of the run's columns")
        elif name in survey.at_end and role == UNUSED:
            yield Finding(NOTE, "known-at-end", name, f"is {AT_END}; it is left out")


# Columns --------------------------------------------------------------------------------------------------------


def _of_column(survey: Survey, name: str, profile: ColumnProfile, *, values: bool) -> Iterator[Finding]:
    yield from _of_types(name, profile)
    yield from _of_bad_numbers(survey, name, profile)
    role = survey.roles[name]
    if survey.look.model is None and role.reads == NUMERIC and role.role == SEQUENCE:
        yield from _of_ids(survey, name, profile)
    if role.role in (SEQUENCE, CONTEXT, UNUSED) and not profile.missing and profile.distinct.count == 1:
        only = f", {next(iter(profile.top.counts))!r}" if values and profile.top.counts else ""
        yield Finding(WARNING, "constant", name, f"has one value only{only}: it tells a model nothing")
    elif profile.kind != OTHER and not profile.distinct.count:
        yield Finding(WARNING, "no-values", name, "holds nothing but nulls and empty lists")
    else:
        yield from _of_constant_parts(name, profile)
    if role.role in (SEQUENCE, CONTEXT, UNUSED):
        yield from _of_cardinality(name, profile)
    if role.reads == NUMERIC and role.role in (SEQUENCE, CONTEXT):
        yield from _of_times(name, role.role, profile)
    if role.role in (SEQUENCE, CONTEXT):
        yield from _of_nulls(survey, name, profile)


def _of_types(name: str, profile: ColumnProfile) -> Iterator[Finding]:
    if profile.counts["not_utf8"]:
        yield Finding(ERROR, "not-utf8", name, "must hold strings in UTF-8, but some are not; write them again")
    elif len(profile.kinds) > 1 and profile.kind == OTHER:
        types = " and ".join(profile.types)
        yield Finding(ERROR, "types-disagree", name, f"is {types} in different files; write them with one type")
    elif len(profile.types) > 1:
        types = ", ".join(f"{kind} ({rows_of(rows)})" for kind, rows in profile.types.items())
        yield Finding(NOTE, "types-differ", name, f"has different types in different files: {types}")


def _of_bad_numbers(survey: Survey, name: str, profile: ColumnProfile) -> Iterator[Finding]:
    used = survey.roles[name].role not in (UNUSED, KEY)
    for count, code, told, cure in (
        ("nan", "nan", "NaN", "write missing values as null, or declare `nan_is_missing: true` for an input"),
        ("infinite", "infinite", "an infinite number", "write null, or a number"),
        ("beyond_float32", "beyond-float32", "a number beyond float32's range", "scale the column"),
    ):
        if not profile.counts[count]:
            continue
        found = f"holds {told} {_times(profile.counts[count])}"
        if code == "nan" and nan_is_borne(survey, name):
            how = "as the run declares" if survey.look.model is not None else "as the proposal does"
            text = f"{found}: training refuses such rows unless the column declares `nan_is_missing: true`, {how}"
            yield Finding(WARNING, code, name, text, profile.places[count])
            continue
        severity = ERROR if used else NOTE
        yield Finding(severity, code, name, f"{found}: training refuses such rows; {cure}", profile.places[count])
    if profile.widths is not None and profile.kind == NUMBER and not profile.integers:
        least, most = profile.widths
        if least != most:
            text = f"holds {least} to {most} numbers a step: must be equally many"
            places = profile.places[NARROWEST] + profile.places[WIDEST]
            yield Finding(ERROR, "widths-disagree", name, text, places)


def nan_is_borne(survey: Survey, name: str) -> bool:
    """Whether a run reads NaN of this column as missing: as it declares, or as the proposal would."""
    model = survey.look.model
    if model is None:
        role = survey.roles[name]
        return role.role in (SEQUENCE, CONTEXT) and role.reads == NUMERIC
    sources = [source_of(column) for _, _, column in iterate_sources(model.columns)]
    mine = [source for source in sources if name in data_columns(source)]
    return bool(mine) and all(getattr(source, "nan_is_missing", False) for source in mine)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _of_constant_parts(name: str, profile: ColumnProfile) -> Iterator[Finding]:
    moments = profile.moments
    if len(moments.count) > 1:
        flat = np.flatnonzero((moments.low == moments.high) & (moments.count > 1))
        if len(flat):
            parts = ", ".join(map(str, flat[:10])) + (", …" if len(flat) > 10 else "")
            never = "never changes" if len(flat) == 1 else "never change"
            text = f"{len(flat)} of the {len(moments.count)} numbers a step {never} (number {parts}, from 0)"
            yield Finding(WARNING, "constant-parts", name, text)


def _of_cardinality(name: str, profile: ColumnProfile) -> Iterator[Finding]:
    if near_unique(profile):
        about = "" if profile.distinct.exact else "about "
        counts = f"{about}{profile.distinct_values:,} of {profile.counts['known_values']:,}"
        text = f"almost every value stands once ({counts}): an id? A model cannot learn from it"
        yield Finding(WARNING, "near-unique", name, text)


def _of_ids(survey: Survey, name: str, profile: ColumnProfile) -> Iterator[Finding]:
    if may_be_ids(profile, survey.patterns[name]):
        text = "holds whole numbers with gaps and without order, which are read as magnitudes: if they are ids, read "
        yield Finding(WARNING, "ids-as-numbers", name, f"{text}them as a vocabulary (`type: embedding`)")


def _of_times(name: str, role: str, profile: ColumnProfile) -> Iterator[Finding]:
    cure = "the days from it to the last step, say, tell more"
    if role == SEQUENCE:
        cure = "time since the step before tells more (`dynamic-rnn prepare --time-delta`)"
    if profile.dates:
        yield Finding(NOTE, "time", name, f"is a point in time, read as seconds since 1970: {cure}")
    elif profile.integers and profile.distinct.count > 2:
        low, high = profile.quantiles.quantiles([0.0, 1.0]).tolist()
        for unit, scale in EPOCHS:
            if low >= YEAR_2000 * scale and high <= YEAR_2050 * scale:
                yield Finding(WARNING, "time-as-number", name, f"looks like {unit} since 1970: {cure}")


def _of_nulls(survey: Survey, name: str, profile: ColumnProfile) -> Iterator[Finding]:
    told, lists = profile.missing_inside, profile.missing - profile.missing_inside
    if lists:
        text = f"holds {lists:,} null {'list' if lists == 1 else 'lists'}: read as having no step"
        yield Finding(NOTE, "missing", name, text)
    if not told:
        return
    model = survey.look.model
    if model is not None:
        cure = "the run bears them" if name in optional_columns(model) else "the run does not say what they become"
    elif survey.roles[name].reads == NUMERIC:
        cure = "declare `missing: mean` and `indicator: true`"
    else:
        cure = "they count as no value"
    nulls = f"{told:,} {'null' if told == 1 else 'nulls'}"
    yield Finding(NOTE, "missing", name, f"holds {nulls}: {cure}", profile.places.get("null", Places()))


# The label ------------------------------------------------------------------------------------------------------


def _of_label(survey: Survey, *, values: bool) -> Iterator[Finding]:
    name = survey.label.name
    if name is None:
        yield Finding(NOTE, "no-label", None, survey.label.reason)
        return
    profile = survey.columns[name]
    if profile.missing and not survey.faults.counts:
        told = "1 label is" if profile.missing == 1 else f"{profile.missing:,} labels are"
        text = f"{told} null: training refuses such rows; fill them in, or leave them out (`data.on_bad_rows: skip`)"
        yield Finding(ERROR, "label-missing", name, text, profile.places.get("null", Places()))
    if is_classification(survey):
        yield from _of_classes(name, profile, values=values)
    elif profile.distinct.count == 1:
        only = f", {next(iter(profile.top.counts))!r}" if values and profile.top.counts else ""
        yield Finding(ERROR, "constant-label", name, f"has one value only{only}: there is nothing to learn")
    elif survey.look.model is None and profile.kind == NUMBER and 1 < profile.distinct.count <= FEW_NUMBERS:
        text = (
            f"holds {profile.distinct.count} different numbers, which are predicted as numbers: if they are classes, "
            "write them as strings or as whole numbers from 0 on"
        )
        if profile.counts["known_values"] >= RARE_CLASS * profile.distinct.count:
            yield Finding(NOTE, "few-numbers", name, text)
    elif survey.look.model is None and may_be_ids(profile, survey.patterns[name]):
        text = (
            "holds whole numbers with gaps and without order, which are predicted as numbers: if they are ids, set "
            "model.problem_type: classification, and read their column as a vocabulary"
        )
        yield Finding(WARNING, "ids-as-numbers", name, text)


def is_classification(survey: Survey) -> bool:
    """Whether the label is a class: as the run says; else strings, booleans, few whole numbers and codes are, and the
    later values of what is read as categories."""
    model: ModelConfig | None = survey.look.model
    if model is not None:
        return model.problem_type.value == "classification"
    name = survey.label.name
    if name is None:
        return False
    profile, told = survey.columns[name], None if survey.prepared is None else survey.prepared.label
    if profile.kind in ("string", "boolean"):
        return True
    if not profile.whole or (told is not None and told.column == name and told.change):
        return False
    source = label_source(name, survey.prepared)
    if reading_of(source, profile, survey.patterns[name]) == CATEGORICAL:
        return True
    if source in survey.roles and survey.roles[source].reads == CATEGORICAL:
        return True
    few = profile.distinct.count <= (MOST_CLASSES if profile.integers else FEW_NUMBERS)
    return few and not profile.counts["negatives"]


def _of_classes(name: str, profile: ColumnProfile, *, values: bool) -> Iterator[Finding]:
    classes, total = profile.distinct.count, sum(profile.top.counts.values())
    if classes < 2:
        yield Finding(ERROR, "one-class", name, f"classification needs at least two classes, but there are {classes}")
        return
    if profile.top.error or classes > 1000:
        yield Finding(WARNING, "many-classes", name, f"has {classes:,} classes: is it a class at all?")
        return
    rare = [value for value, count in profile.top.most(classes) if count < RARE_CLASS]
    if rare:
        shown = ": " + ", ".join(repr(value) for value in rare[:5]) + (", …" if len(rare) > 5 else "") if values else ""
        text = f"{len(rare)} of {classes} classes stand fewer than {RARE_CLASS} times{shown}"
        yield Finding(WARNING, "rare-classes", name, text)
    value, count = profile.top.most(1)[0]
    if count > DOMINANT_CLASS * total:
        which = f"{value!r}" if values else "one class"
        text = f"{which} is {count / total:.1%} of the labels: accuracy says little; weigh the classes (class_weights)"
        yield Finding(WARNING, "dominant-class", name, text)
