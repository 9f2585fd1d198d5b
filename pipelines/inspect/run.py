"""`inspect`: a report on data before anything is trained. One distributed pass over the row groups.

A peek at three row groups decides what to look for where no run says it; then every row group is profiled once, and
the profiles merge in (file, row group) order: the same data give the same report on any number of workers. The driver
keeps 12 bytes a row (its length and the hash of its key) and summaries of bounded size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from model.errors import DataError
from model.scan.needed_columns import optional_columns, read_columns
from model.storage import absolute
from model.tables.fragments import Fragment
from model.tables.parquet import Found, find, read_footer
from pipelines.config import RunConfig
from pipelines.inspect.estimates import Estimates, estimates
from pipelines.inspect.findings import Finding, findings
from pipelines.inspect.profile_task import FragmentProfile, Look, ProfileTask
from pipelines.inspect.proposal import Proposal, propose
from pipelines.inspect.roles import Choice, choose_look, configured_look, configured_roles, roles_of
from pipelines.inspect.survey import Merger, Survey, survey_of
from pipelines.tasks.map import fragments_a_task, over_numbers
from pipelines.tasks.task import NumberedTask

PEEKED = 16  # row groups of another peek, where the first found damaged ones alone

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
    values: bool = True,
    sample: bool = False,
    progress: Progress | None = None,
    found: Found | None = None,
) -> Inspection:
    """Inspects all rows under `data`; with `config` as its run would read them. `found` is what `find_data` gave.

    `values` lets the report name values of the data, `sample` adds its first rows. A row group that cannot be decoded
    is a finding. DataError when none can be decoded, or a file or a column that the run needs is not there;
    ConfigError for a label or key that is no column.
    """
    found = found or find_data(data, config)
    fragments = found.fragments
    look, told_label, told_key = _look(fragments, config, label, key)
    look = replace(look, sample=sample)
    merger = Merger()
    kept = []
    for done, part in enumerate(profiles(fragments, look, fragments_a_task(len(fragments), found.nbytes)), 1):
        merger.add(part)
        kept.append(replace(fragments[done - 1], rows=part.rows))  # a filter may leave fewer
        if progress is not None:
            progress(done, len(fragments))
    _refuse_nothing(merger)
    roles = (
        roles_of(merger.columns, look, {name: told.rows for name, told in merger.disagreements.items()})
        if config is None
        else configured_roles(merger.columns, config.model, told_key.name)
    )
    survey = survey_of(merger, absolute(data), kept, look, told_label, told_key, roles)
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


def find_data(data: str, config: RunConfig | None) -> Found:
    """The row groups under `data`, with the columns of the run where there is one; footers alone are read."""
    if config is None:
        return find(data, ())
    names, optional = read_columns(config.model), optional_columns(config.model)
    return find(data, names, optional=optional, where=config.data.where, partition_types=config.data.partition_types)


def _look(
    fragments: Sequence[Fragment], config: RunConfig | None, label: str | None, key: str | None
) -> tuple[Look, Choice, Choice]:
    if config is not None:
        names = read_footer(fragments[0].file).schema.to_arrow_schema().names
        names += [name for name, _ in fragments[0].partitions]
        named = config.data.keys[0] if config.data.keys else None
        return configured_look(config.model, key or named, names, config.data.where, config.plugins)
    return choose_look(_peek(fragments), label, key, frozenset(name for name, _ in fragments[0].partitions))


def _peek(fragments: Sequence[Fragment]) -> Merger:
    """Profiles of three row groups, or of more where all of those are damaged."""
    some = dict.fromkeys([0, len(fragments) // 2, len(fragments) - 1])
    others = [number for number in range(len(fragments)) if number not in some]
    peek = Merger()
    for numbers in (sorted(some), *(others[start : start + PEEKED] for start in range(0, len(others), PEEKED))):
        for part in profiles([fragments[number] for number in numbers], Look()):
            peek.add(part)
        if peek.columns:
            break
    _refuse_nothing(peek)
    return peek


def _refuse_nothing(merger: Merger) -> None:
    if not merger.columns and merger.damages:
        first = merger.damages[0]
        raise DataError(f"{first.problem}; and no other row group can be decoded", file=first.file)


def profiles(fragments: Sequence[Fragment], look: Look, each: int = 1) -> Iterator[FragmentProfile]:
    """The profiles of all fragments, in order, by tasks that take some each."""
    task = NumberedTask(ProfileTask(tuple(fragments), look))
    for _, plain in over_numbers(task, range(len(fragments)), each=each):
        yield FragmentProfile.from_plain(plain)
