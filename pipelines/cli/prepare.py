"""The command that makes sequences of an event table: prepare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal

import typer

from model.errors import ConfigError
from pipelines.cli.options import Address, Executor, executor_for, local_cpus
from pipelines.console import Console

PHASES = {"partition": "sorting events", "detect": "looking for context columns", "build": "writing sequences"}
Names = list[str] | None


def prepare(
    context: typer.Context,
    events: Annotated[
        str, typer.Argument(metavar="EVENTS", help="Parquet or CSV file, directory, glob or URI: one row an event")
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help="new directory for the sequences")],
    time: Annotated[
        str,
        typer.Option("--time", metavar="COLUMN[,…]", help="orders the events; more columns order those of equal time"),
    ],
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="COLUMN[,…]", help="the entity whose events form sequences; none: a single series"
        ),
    ] = None,
    columns: Annotated[
        Names, typer.Option("--columns", metavar="COLUMN", help="becomes lists (repeatable); default: all others")
    ] = None,
    context_columns: Annotated[
        Names, typer.Option("--context", metavar="COLUMN", help="has one value a key (repeatable)")
    ] = None,
    detect_context: Annotated[
        bool, typer.Option("--detect-context/--no-detect-context", help="find more of them, unless --columns is given")
    ] = True,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="what to predict: the value at a sequence's end")
    ] = None,
    label_shift: Annotated[
        int, typer.Option("--label-shift", metavar="N", min=0, help="predict at each event the value N events later")
    ] = 0,
    label_change: Annotated[
        bool, typer.Option("--label-change", help="with --label-shift: predict the change until then, not the value")
    ] = False,
    for_scoring: Annotated[
        bool, typer.Option("--for-scoring", help="keep events whose label is not known yet, with null: to predict on")
    ] = False,
    continue_from: Annotated[
        str | None, typer.Option("--continue", metavar="OUT", help="go on from each key's last events in that output")
    ] = None,
    time_delta: Annotated[
        str | None, typer.Option("--time-delta", metavar="NAME", help="new column: seconds since the event before")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", metavar="N", min=1, help="cut sequences after N events")
    ] = None,
    gap: Annotated[
        str | None, typer.Option("--gap", help="cut where no event came for longer: 90s, 30m, 12h, 7d, or a number")
    ] = None,
    split_by_time: Annotated[
        str | None,
        typer.Option(
            "--split-by-time", metavar="T[,T]", help="write train/, from T on validation/, from the second test/"
        ),
    ] = None,
    types: Annotated[
        Names,
        typer.Option("--types", metavar="COLUMN=TYPE[,…]", help="Arrow types to read columns with, as zip=string"),
    ] = None,
    on_bad_rows: Annotated[
        Literal["error", "skip"], typer.Option("--on-bad-rows", help="events without key or time: stop, or leave out")
    ] = "error",
    row_group_rows: Annotated[
        int, typer.Option("--row-group-rows", metavar="N", min=1, help="sequences of a row group at most")
    ] = 1024,
    task_mebibytes: Annotated[
        int, typer.Option("--task-mebibytes", metavar="N", min=1, help="events that a task sorts in memory, in MiB")
    ] = 64,
    workers: Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="tasks at once at most")] = None,
    executor: Executor = "auto",
    address: Address = None,
) -> None:
    """Turn an event table into sequences: group by key, order by time, cut. When stopped, it goes on where it was."""
    from model.settings import build
    from pipelines.prepare.plan import plan_of
    from pipelines.prepare.run import finished
    from pipelines.prepare.settings import PrepareSettings

    given = {
        "key": key,
        "time": time,
        "columns": columns or None,
        "context": context_columns or (),
        "detect_context": detect_context,
        "label": label,
        "label_shift": label_shift,
        "label_change": label_change,
        "for_scoring": for_scoring,
        "time_delta": time_delta,
        "max_length": max_length,
        "gap": gap,
        "split_by_time": tuple(each.strip() for each in split_by_time.split(",")) if split_by_time else (),
        "types": named_types(types or ()),
        "on_bad_rows": on_bad_rows,
        "row_group_rows": row_group_rows,
        "task_mebibytes": task_mebibytes,
    }
    settings = build(PrepareSettings, given, where="prepare")
    plan = plan_of(events, settings, continue_from)
    result = finished(events, output, settings, plan=plan)  # before Ray starts: a mistake is told at once
    if result is None:
        # A private Ray has CPUs to spare that the machine has not; a cluster's are what it has.
        tasks = workers or (local_cpus() if address is None else None)
        with executor_for(context, executor, plan.nbytes, tasks or local_cpus(), address):
            result = prepare_events(context.obj, events, output, settings, plan, tasks)
    else:
        context.obj.note(f"{output} holds these sequences already")
    show_summary(context.obj, result)
    context.obj.next("inspect", output, "--write", "run.yaml")


def named_types(given: Iterable[str]) -> dict[str, str]:
    """{column: type} of `a=int64,b=timestamp[us, UTC]`; a comma within brackets or in a column's name parts nothing."""
    found, name = {}, ""
    for text in given:
        for part in re.split(r",(?![^\[]*\])", text):
            name = f"{name},{part}" if name else part
            if "=" in part:
                column, _, kind = name.rpartition("=")
                found[column.strip()], name = kind.strip(), ""
        if name:
            raise ConfigError(f"--types must be COLUMN=TYPE, such as zip=string, but is {text!r}")
    return found


def prepare_events(console: Console, events: str, output: str, settings: Any, plan: Any, workers: int | None) -> Any:
    """Prepares as planned, with a bar for each phase."""
    from pipelines.prepare.run import prepare as prepare_sequences

    with phases(console) as progress:
        try:
            return prepare_sequences(events, output, settings, workers=workers, progress=progress, plan=plan)
        except KeyboardInterrupt:
            console.note(f"stopped: nothing is in {output} yet; the same command goes on where this one was")
            raise


@contextmanager
def phases(console: Console) -> Iterator[Any]:
    """Gives a callback (phase, done, total) that shows a bar for each phase; its count goes on from the last's."""
    shown: dict[str, Any] = {}
    before = latest = 0
    with ExitStack() as bars:

        def progress(phase: str, done: int, total: int) -> None:
            nonlocal before, latest
            if phase not in shown:
                before = latest
                bars.close()
                shown[phase] = bars.enter_context(console.counting(PHASES[phase]))
            latest = before + total
            shown[phase](before + done, latest)

        yield progress


def show_summary(console: Console, result: Any) -> None:
    """The summary of a preparation."""
    of_keys = f"{result.keys:,} keys" if result.prepared.get("key", True) else "one series"
    rows: dict[str, Any] = {"events": f"{result.events:,} of {of_keys}"}
    for split, count in result.sequences.items():
        spread = ", ".join(f"{name} {length:,}" for name, length in result.lengths[split].items())
        rows[f"{split} sequences".strip()] = f"{count:,}; events of one: {spread}" if spread else "none"
    rows["lists"] = ", ".join(result.sequence_columns)
    rows["context"] = ", ".join(
        f"{name} (detected)" if name in result.detected_context else name for name in result.context_columns
    )
    if result.read_as:
        rows["read as"] = ", ".join(f"{name} {kind}" for name, kind in result.read_as.items())
    if result.prepared:
        rows["known at the end alone"] = ", ".join(result.prepared["known_at_end"])
    if result.tied_events:
        rows["events that tie in time"] = _ties(result)
    if result.unlabelled_events:
        kept = "label not known yet" if result.prepared.get("for_scoring") else "left out, no later value"
        rows[kept] = f"{result.unlabelled_events:,} events"
    if result.bad_events:
        rows["left out, no key or time"] = f"{result.bad_events:,} events, kept in _quarantine"
    if result.late_events:
        rows["left out, too late"] = f"{result.late_events:,} events older than those prepared before, in _quarantine"
    console.table(f"sequences: {result.directory}", {name: value or "none" for name, value in rows.items()})


def _ties(result: Any) -> str:
    """How many events have the key and time of another, and what the order in the files decides."""
    share = f"{result.tied_events:,} of {result.events:,} ({result.tied_events / result.events:.0%})"
    if not result.unordered_events:
        return f"{share}, ordered by {', '.join(result.prepared['time'][1:])}"
    labels = f" and {result.unordered_labels:,} of {result.labels:,} labels" if result.labels else ""
    cure = f"--time {','.join(result.prepared['time'])},COLUMN orders them"
    return f"{share}; the files' order decides for {result.unordered_events:,}{labels}: {cure}"
