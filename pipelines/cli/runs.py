"""The command that lists runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.tracking.run_list import RunLine

WIDTH = 260  # a bundle's path should stay on one line, to be copied

MOST_REASON = 60  # characters; --json has all of them


def runs(
    context: typer.Context,
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="directory or URI that holds the runs")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object a line")] = False,
) -> None:
    """List the runs in a directory: status, why they ended, best metric and bundle, and which --resume goes on with."""
    import json
    from dataclasses import asdict

    from model.bundle.run_directory import RAY_TUNE, RUN_YAML
    from model.storage import absolute, join
    from pipelines.tracking.run_list import MOST_LEVELS, list_runs

    found = list_runs(absolute(output))
    if as_json:
        for line in found:
            context.obj.say(json.dumps(asdict(line)))
        return
    if not found:
        context.obj.say(
            f"no runs in {absolute(output)}: none of its directories, {MOST_LEVELS} levels deep, "
            f"holds {RUN_YAML} (a run's) or {RAY_TUNE}/ (a sweep's)"
        )
        return
    context.obj.say(_table(found))
    latest = max(found, key=lambda line: line.updated or 0.0)
    directory = join(absolute(output), latest.name)
    if latest.resumable:
        context.obj.next("tune" if latest.kind == "sweep" else "train", join(directory, RUN_YAML), "--resume")
    elif latest.bundle is not None:
        context.obj.next("evaluate", directory, "TEST_DATA")


def _shortened(reason: str) -> str:
    return reason if len(reason) <= MOST_REASON else f"{reason[: MOST_REASON - 1]}…"


def _table(lines: list[RunLine]) -> str:
    import io
    import time

    from rich.console import Console
    from rich.table import Table

    from pipelines.console import duration

    table = Table(box=None, pad_edge=False)
    for heading in ("run", "kind", "status", "step", "best", "updated", "resumable", "why", "bundle"):
        table.add_column(heading, justify="right" if heading == "step" else "left", overflow="fold")
    for line in lines:
        best = "" if line.value is None else f"{line.metric} {line.value:.4f}"
        ago = "" if line.updated is None else f"{duration(max(time.time() - line.updated, 0))} ago"
        step = "" if line.step is None else f"{line.step}"
        resumable = "yes" if line.resumable else ""
        why = _shortened(line.reason or "")
        table.add_row(line.name, line.kind, line.status, step, best, ago, resumable, why, line.bundle or "")
    stream = io.StringIO()
    Console(file=stream, width=WIDTH, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())
