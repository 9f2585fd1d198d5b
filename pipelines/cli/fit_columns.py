"""The command that fits the columns of a run: fit-columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import ConfigFile, Overrides, executor_for, local_cpus
from pipelines.console import Console

if TYPE_CHECKING:
    from pipelines.config import RunConfig


def fit_columns(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="JSON file to write as well: what is shown, and the fitted columns")
    ] = None,
) -> None:
    """Fit vocabularies, means and boundaries in one pass over the training rows; train and tune use them.

    They lie in the run's data/ and are used as long as neither the data nor the columns change. Fitted again only then.
    """
    from pipelines.config import load_run
    from pipelines.ingest.fit_cache import check_fit, is_current
    from pipelines.ingest.scan import find_data

    run = load_run(config, overrides or [])
    check_fit(run)  # before Ray starts: a mistake is told at once
    if is_current(run):
        context.obj.note(f"{run.directory}/data goes with the data and the settings: nothing is scanned")
        prepared = _fitted(context.obj, run)
    else:
        nbytes, resources = sum(found.nbytes for found in find_data(run)), run.resources
        with executor_for(context, resources.executor, nbytes, local_cpus(), resources.address):
            prepared = _fitted(context.obj, run)
    _show(context.obj, run, prepared)
    if output is not None:
        _write(output, prepared)
        context.obj.note(f"written: {output}")
    context.obj.next("train", config, *(overrides or []))


def _fitted(console: Console, run: RunConfig) -> Any:
    from pipelines.ingest.fit_cache import fitted_data

    with console.counting("scanning row groups") as progress:
        return fitted_data(run, progress=progress, say=console.note)


def _show(console: Console, run: RunConfig, prepared: Any) -> None:
    from model.scan.fit_report import lines_of

    validation = "" if prepared.validation is None else f", {prepared.validation.rows:,} rows validate"
    rows = f"{prepared.train.rows:,} rows of {prepared.train.steps:,} steps{validation}"
    console.table(f"columns fitted on {rows}: {run.directory}/data", lines_of(prepared.report))


def _write(output: Path, prepared: Any) -> None:
    from model.storage import write_bytes

    told = {
        "rows": prepared.train.rows,
        "steps": prepared.train.steps,
        **prepared.report,
        "fitted": prepared.columns.model_dump(mode="json")["sources"],
    }
    write_bytes(output, (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode())
