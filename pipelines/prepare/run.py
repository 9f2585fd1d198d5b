"""Event tables to sequences: grouped by key, ordered by time, cut. Distributed, in bounded memory, the same bits.

    prepare("events/", "sequences/", PrepareSettings(key="user_id", time="ts", max_length=200))

Two passes of tasks over storage, as in every external sort. The first turns row groups into sorted runs,
each ordered by the hash of the key; the second merges a share of the hash range (a bucket) of all runs and cuts it
into sequences. Between them lie the runs, in a work directory within the output, which all nodes must reach. A task
holds `task_mebibytes` of events whatever the size of the input, of a row group or of a key: a long key's runs are
merged as a stream. The results of tasks are kept, so that a preparation that was stopped goes on where it was; the
output appears when all of it is whole.

The rejected twin is Ray Data's own shuffle. Ten million events (400 MB in Arrow) with an object store of 80 MB: `sort`,
`groupby` and `repartition(keys=…)` all end, in 34 to 41 s, but their processes take 2.2 GB, five times the data; and
`map_groups` takes a whole key into one task, 2.8 GB where there is a single one. Nor do they keep what they have done
when they are stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from model.errors import DataError
from model.storage import join
from model.storage.filesystems import PathLike
from pipelines.prepare.detect import Detect, ends, ends_columns
from pipelines.prepare.layout import Layout
from pipelines.prepare.plan import PreparePlan, plan_of
from pipelines.prepare.settings import SPLITS, PrepareSettings
from pipelines.prepare.sorted_runs import RunFile
from pipelines.prepare.tasks import Build, Partition, Recorded
from pipelines.prepare.workspace import Workplace, kept_results
from pipelines.tasks.map import over_numbers
from pipelines.tasks.task import NumberedTask

Progress = Callable[[str, int, int], None]
QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}


@dataclass(frozen=True)
class PrepareResult:
    """What a preparation wrote. `sequences` and `lengths` are by split, or under "" where there are none."""

    directory: str
    events: int
    keys: int
    sequences: dict[str, int]
    lengths: dict[str, dict[str, int]]  # split -> quantile -> events of a sequence
    sequence_columns: tuple[str, ...]
    context_columns: tuple[str, ...]
    detected_context: tuple[str, ...]
    unlabelled_events: int  # without a later value in their session: left out, or for scoring kept with null
    bad_events: int
    files: int
    late_events: int = 0  # older than what the preparation before has written of their key: left out
    tied_events: int = 0  # with another of the same key and time
    unordered_events: int = 0  # of these, by nothing ordered but the files
    unordered_labels: int = 0  # labels that the order in the files decides
    labels: int = 0
    read_as: dict[str, str] = field(default_factory=dict)  # of CSV: the type of each column
    prepared: dict[str, Any] = field(default_factory=dict)  # what the files' metadata tell (`model.tables.prepared`)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> PrepareResult:
        """The result of `asdict`, after a travel through JSON."""
        plain: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
        return cls(**plain)


def prepare(
    events: PathLike,
    output: PathLike,
    settings: PrepareSettings,
    *,
    continue_from: PathLike | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    plan: PreparePlan | None = None,
) -> PrepareResult:
    """Writes the events under `events` (Parquet or CSV: file, directory, glob or URI) as sequences into `output`.

    `continue_from` is the output of the preparation before, with whose last events of each key these go on. `workers`
    bounds the tasks that run at once; `progress` gets (phase, tasks done, tasks); a `plan` saves reading the footers
    again. The output is the same for any number of workers, and without Ray. A call that was stopped goes on; one that
    was finished returns its result. DataError and ConfigError tell what is wrong with events or settings, and leave
    nothing behind.
    """
    plan = plan or plan_of(events, settings, continue_from)
    place = _place(plan, events, output, settings)
    found = place.claim()
    if found is not None:
        return PrepareResult.from_plain(found)
    try:
        return _prepared(plan, place, settings, workers, progress or (lambda *_: None))
    except DataError:
        place.clear()
        raise


def finished(
    events: PathLike,
    output: PathLike,
    settings: PrepareSettings,
    continue_from: PathLike | None = None,
    *,
    plan: PreparePlan | None = None,
) -> PrepareResult | None:
    """The result where this preparation is done already, None where it may begin or go on; else its mistakes, raised.

    Changes nothing and needs no Ray.
    """
    found = _place(plan or plan_of(events, settings, continue_from), events, output, settings).check()
    return None if found is None else PrepareResult.from_plain(found)


def _place(plan: PreparePlan, events: PathLike, output: PathLike, settings: PrepareSettings) -> Workplace:
    return Workplace(events, output, settings, plan.files, () if plan.continuation is None else plan.continuation.files)


# The work ---------------------------------------------------------------------------------------------------------


def _prepared(
    plan: PreparePlan, place: Workplace, settings: PrepareSettings, workers: int | None, progress: Progress
) -> PrepareResult:
    partition = Partition(plan.shares, plan.layout, settings, plan.buckets, place.work)
    parts = _all(place, "partition", partition, len(plan.shares), workers, progress)
    runs = tuple(RunFile.from_plain(run) for part in parts for run in part["runs"])
    bad = sum(part["bad"] for part in parts)
    events = sum(sum(run.rows) for run in runs)
    if not events:
        raise DataError(f"no event is left: all {bad} lack a key or a time")
    detected, layout = _detected(plan, place, parts, runs, workers, progress)
    row_bytes = sum(part["bytes"] for part in parts) / events
    build = Build(runs, layout, settings, row_bytes, place.work)
    built = _all(place, "build", build, plan.buckets, workers, progress)
    files = [(path, name) for what in ("files", "left") for part in built for path, name in part[what]]
    kept = [
        (join(place.work, "quarantine", name), f"_quarantine/{name}")
        for part in [*parts, *built]
        for name in part["quarantine"]
    ]
    result = _result(place.output, plan, layout, detected, bad, built, settings)
    place.publish(files + kept, asdict(result))
    return result


def _detected(
    plan: PreparePlan,
    place: Workplace,
    parts: Sequence[dict[str, Any]],
    runs: tuple[RunFile, ...],
    workers: int | None,
    progress: Progress,
) -> tuple[tuple[str, ...], Layout]:
    """The candidates that have one value in every key, none where each key has one event, which says nothing; and the
    layout with them, and with what is known only at the end."""
    if plan.continuation is not None:
        return (), plan.layout
    names = _common(plan.layout.candidates, parts)
    repeats = any(part["repeats"] for part in parts)
    found = parts
    if len(runs) > 1 and (names or ends_columns(plan.layout, names)):
        found = _all(place, "detect", Detect(runs, plan.layout, names), plan.buckets, workers, progress)
        names = _common(names, found)
        repeats = repeats or any(check["repeats"] for check in found)
    only = set(plan.layout.sequence) == set(names) and plan.layout.time_delta is None
    names = () if only or not repeats else names  # a sequence must have a list, or it has no length
    known_at_end = ends([part["ends"] for part in found], (*plan.layout.context, *names))
    return names, plan.layout.with_context(names, known_at_end)


def _common(names: Sequence[str], parts: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(name for name in names if all(name in part["candidates"] for part in parts))


def _all(
    place: Workplace, phase: str, task: Any, count: int, workers: int | None, progress: Progress
) -> list[dict[str, Any]]:
    """The results of tasks 0 … count − 1 of a phase, in order: those that are kept, and the others computed."""
    results = kept_results(place.records(phase), count)
    todo = [number for number in range(count) if number not in results]
    recorded = NumberedTask(Recorded(task, place.records(phase)))
    progress(phase, count - len(todo), count)
    for done, (number, result) in enumerate(over_numbers(recorded, todo, workers=workers), 1):
        results[number] = result
        progress(phase, count - len(todo) + done, count)
    return [results[number] for number in range(count)]


# The result -------------------------------------------------------------------------------------------------------


def _result(
    output: str,
    plan: PreparePlan,
    layout: Layout,
    detected: tuple[str, ...],
    bad: int,
    built: Sequence[dict[str, Any]],
    settings: PrepareSettings,
) -> PrepareResult:
    splits = SPLITS[: len(settings.split_by_time) + 1] if settings.split_by_time else ("",)
    lengths: list[Counter[int]] = [Counter() for _ in splits]
    for part in built:
        for split, found in part["lengths"].items():
            lengths[int(split)].update(dict(found))

    def total(name: str) -> int:
        return sum(part[name] for part in built)

    sequences = sum(found.total() for found in lengths)
    steps = sum(length * count for found in lengths for length, count in found.items())
    unlabelled = total("unlabelled") if layout.for_scoring else 0
    return PrepareResult(
        directory=output,
        events=total("events"),
        keys=total("keys"),
        sequences={name: found.total() for name, found in zip(splits, lengths, strict=True)},
        lengths={name: quantiles(found) for name, found in zip(splits, lengths, strict=True)},
        sequence_columns=layout.sequence,
        context_columns=layout.context,
        detected_context=detected,
        unlabelled_events=total("unlabelled"),
        bad_events=bad,
        files=sum(len(part["files"]) for part in built),
        late_events=total("late"),
        tied_events=total("tied"),
        unordered_events=total("unordered"),
        unordered_labels=total("unordered_labels"),
        labels=0 if layout.label is None else steps - unlabelled if layout.label_shift else sequences,
        read_as=plan.read_as,
        prepared=layout.prepared().model_dump(mode="json"),
    )


def quantiles(lengths: Counter[int]) -> dict[str, int]:
    """The lengths that so many sequences do not exceed; empty where there is none."""
    values = np.array(sorted(lengths), np.int64)
    if not len(values):
        return {}
    ends = np.cumsum([lengths[value] for value in values.tolist()])
    places = [int(np.searchsorted(ends, max(1, np.ceil(share * ends[-1])))) for share in QUANTILES.values()]
    return dict(zip(QUANTILES, (int(values[place]) for place in places), strict=True))
