"""`inspect`: a report on data before anything is trained. One pass over the row groups.

A peek at three row groups decides what to look for where no run says it; then every row group is profiled once, and
the profiles merge in (file, row group) order: the same data give the same report on any number of workers. The driver
keeps 12 bytes a row (its length and the hash of its key; of an event its time, too) and summaries of bounded size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from model.errors import DataError
from model.scan.needed_columns import optional_columns, read_columns
from model.storage import absolute, is_directory, join, search_root
from model.tables.parquet import Found, find, read_footer
from model.tables.prepared import Prepared
from pipelines.config import RunConfig
from pipelines.inspect.estimates import Estimates, estimates
from pipelines.inspect.findings import Finding, findings, is_classification
from pipelines.inspect.patterns import unnamed_key
from pipelines.inspect.profile_task import FragmentProfile, Look, ProfileTask
from pipelines.inspect.proposal import Proposal, propose
from pipelines.inspect.roles import (
    KEY,
    Chosen,
    Given,
    Role,
    at_end_of,
    choose,
    configured_choice,
    configured_roles,
    roles_of,
)
from pipelines.inspect.sketches import Value
from pipelines.inspect.survey import Located, Merger, Survey, survey_of
from pipelines.tasks.map import fragments_a_task, over_numbers
from pipelines.tasks.task import NumberedTask

PEEKED = 16  # row groups of another peek, where the first found damaged ones alone
TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Inspection:
    """The survey, what is suspicious in it, a run for it, and what that run (or the given one) would take."""

    survey: Survey
    findings: tuple[Finding, ...]
    proposal: Proposal
    estimates: Estimates | None
    config: RunConfig | None
    values: bool


def inspect_data(
    data: str,
    *,
    config: RunConfig | None = None,
    label: str | None = None,
    key: str | None = None,
    time: str | None = None,
    columns: Sequence[str] | None = None,
    values: bool = True,
    sample: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Inspects all rows under `data`; with `config` as its run would read them.

    Of a split's parts the training part is inspected. `columns` are read alone, with label, key and time. `values` lets
    the report name values of the data, `sample` adds its first rows. A row group that cannot be decoded is a finding.
    DataError when none can be decoded, or a file or a column that the run needs is not there; ConfigError for a label
    or key that is no column.
    """
    given = Given(label, key, time, None if columns is None else tuple(columns))
    return inspect_located(locate(data, config, given), config, given, values=values, sample=sample, progress=progress)


def locate(data: str, config: RunConfig | None = None, given: Given | None = None) -> Located:
    """What there is to inspect, from names and footers."""
    found = _find(data, config, given)
    prepared = found.prepared[0] if len(found.prepared) == 1 else _agreed(found.prepared)
    whole = Located(absolute(data), absolute(data), tuple(found.fragments), found.nbytes, prepared)
    if config is not None:
        return whole
    parts = parts_of(data, [fragment.file for fragment in found.fragments])
    if TRAIN not in parts or len(parts) == 1:
        return replace(whole, mixed=len({each.split for each in found.prepared}) > 1)
    below = f"{search_root(data, [each.file for each in found.fragments])}/{TRAIN}/"
    training = tuple(each for each in found.fragments if each.file.startswith(below))
    return replace(whole, data=parts[TRAIN], fragments=training, parts=parts)


def _agreed(prepared: Sequence[Prepared]) -> Prepared | None:
    """What `prepare` told of all files alike but for the part of a split that each is."""
    alike = {each.model_copy(update={"split": None}) for each in prepared}
    return alike.pop() if len(alike) == 1 else None


def parts_of(data: str, files: Sequence[str]) -> dict[str, str]:
    """The directories of a split's parts by name, where all files lie in such; else none of them."""
    root = search_root(data, files)
    found: dict[str, str] = {}
    for file in files:
        part, below, _ = file.removeprefix(f"{root}/").partition("/")
        if part not in PARTS or not below:
            return {}
        found[part] = join(absolute(data), part) if is_directory(data) else f"{root}/{part}"
    return {part: found[part] for part in PARTS if part in found}


def inspect_located(
    located: Located,
    config: RunConfig | None,
    given: Given,
    *,
    values: bool,
    sample: bool,
    progress: Progress | None = None,
) -> Inspection:
    """`inspect_data` of what `locate` found."""
    chosen = _chosen(located, config, given)
    look = replace(chosen.look, sample=sample)
    merger = Merger()
    kept = []
    for done, part in enumerate(profiles(located, look), 1):
        merger.add(part)
        kept.append(replace(located.fragments[done - 1], rows=part.rows))  # a filter may leave fewer
        if progress is not None:
            progress(done, len(located.fragments))
    _refuse_nothing(merger)
    at_end = at_end_of(merger.columns, merger.patterns, look, located.prepared)
    if config is None:
        unaligned = {name: told.rows for name, told in merger.disagreements.items()}
        roles = roles_of(merger.columns, merger.patterns, look, unaligned, at_end)
    else:
        roles = configured_roles(merger.columns, config.model, chosen.key.name)
    key_like = None
    if config is None and chosen.key.name is None:
        key_like = unnamed_key(merger.columns, merger.patterns, merger.groups, len(kept))
    if key_like is not None:
        roles[key_like[0]] = Role(KEY, reason=f"it seems to name whose rows these are: {key_like[1]}")
    survey = survey_of(merger, located, kept, replace(chosen, look=look), roles, at_end, key_like)
    if config is None:
        survey = replace(survey, late_classes=_late_classes(survey))
    proposal = propose(survey, values=values)
    run = config or proposal.config
    return Inspection(
        survey=survey,
        findings=tuple(findings(survey, values=values)),
        proposal=proposal,
        estimates=None if run is None or survey.lengths is None else estimates(survey, run),
        config=config,
        values=values,
    )


def _find(data: str, config: RunConfig | None, given: Given | None) -> Found:
    if config is None:
        return find(data, () if given is None or given.columns is None else given.columns)
    names, optional = read_columns(config.model), optional_columns(config.model)
    return find(data, names, optional=optional, where=config.data.where, partition_types=config.data.partition_types)


def _chosen(located: Located, config: RunConfig | None, given: Given) -> Chosen:
    fragments = located.fragments
    if config is not None:
        names = read_footer(fragments[0].file).schema.to_arrow_schema().names
        names += [name for name, _ in fragments[0].partitions]
        named = config.data.keys[0] if config.data.keys else None
        look = Look(where=config.data.where, plugins=config.plugins)
        return configured_choice(config.model, given.key or named, names, look, located.prepared)
    return choose(
        _peek(located, given), given, located.prepared, frozenset(name for name, _ in fragments[0].partitions)
    )


def _peek(located: Located, given: Given) -> Merger:
    """Profiles of three row groups, or of more where all of those are damaged."""
    fragments = located.fragments
    some = dict.fromkeys([0, len(fragments) // 2, len(fragments) - 1])
    others = [number for number in range(len(fragments)) if number not in some]
    peek = Merger()
    for numbers in (sorted(some), *(others[start : start + PEEKED] for start in range(0, len(others), PEEKED))):
        peeked = tuple(fragments[number] for number in numbers)
        for part in profiles(replace(located, fragments=peeked), Look(columns=given.read)):
            peek.add(part)
        if peek.columns:
            break
    _refuse_nothing(peek)
    return peek


def _refuse_nothing(merger: Merger) -> None:
    if not merger.columns and merger.damages:
        first = merger.damages[0]
        raise DataError(f"{first.problem}; and no other row group can be decoded", file=first.file)


def _late_classes(survey: Survey) -> tuple[Value, ...]:
    """The classes that only the validation part has, where all are followed: a run must know them beforehand."""
    name, path = survey.label.name, survey.parts.get(VALIDATION)
    if name is None or path is None or not is_classification(survey):
        return ()
    found = find(path, ())
    part = Located(path, path, tuple(found.fragments), found.nbytes)
    merger = Merger()
    for profile in profiles(part, Look(columns=(name,))):
        merger.add(profile)
    known: Mapping[Value, int] = survey.columns[name].top.counts
    others = merger.columns[name].top.counts if name in merger.columns else ()
    return tuple(value for value in others if value not in known)


def profiles(located: Located, look: Look) -> Iterator[FragmentProfile]:
    """The profiles of all row groups, in order."""
    task, count = ProfileTask(located.fragments, look), len(located.fragments)
    for _, plain in over_numbers(NumberedTask(task), range(count), each=fragments_a_task(count, located.nbytes)):
        yield FragmentProfile.from_plain(plain)
