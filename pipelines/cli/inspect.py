"""The command that reports on data before anything is trained: inspect."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

import typer

from pipelines.cli.options import Address, DataPath, Executor, executor_for, local_cpus

GENERATED = '<meta name="generator" content="dynamic-rnn inspect">'


def inspect(
    context: typer.Context,
    data: DataPath,
    config: Annotated[
        str | None, typer.Option("--config", metavar="RUN.YAML", help="check the rows as this run would read them")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="column to predict; default: guessed")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="COLUMN", help="column that names the entity; default: guessed")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="COLUMN", help="of events: column that orders them; default: guessed"),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="COLUMN", help="read these alone, and label and key (repeatable); default: all"
        ),
    ] = None,
    html: Annotated[
        str, typer.Option("--html", metavar="PATH", help="where the page goes, a path or URI")
    ] = "inspect.html",
    no_html: Annotated[bool, typer.Option("--no-html", help="write no page")] = False,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="also write the report for machines")
    ] = None,
    write: Annotated[
        str | None, typer.Option("--write", metavar="RUN.YAML", help="write the proposed run, ready to train")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the files that are written")] = False,
    no_values: Annotated[bool, typer.Option("--no-values", help="show no value of the data, only counts")] = False,
    examples: Annotated[bool, typer.Option("--examples", help="show the first rows in the page")] = False,
    check: Annotated[bool, typer.Option("--check", help="exit with code 1 where training would refuse rows")] = False,
    executor: Executor = "auto",
    address: Address = None,
) -> None:
    """Report on data before training: lengths, columns, label, suspicious things, and a run to start from."""
    from pipelines.config import load_run

    if no_values and examples:
        raise _mistake("--examples shows rows and --no-values shows no value: leave one of them out")
    if config is not None and label is not None:
        raise _mistake("--label is for data without a run; change model.label in the file of --config instead")
    if config is not None and columns:
        raise _mistake("--columns is for data without a run: with --config its columns are read")
    run = None if config is None else load_run(config)
    page = None if no_html else html
    check_targets(page, json_path, write, force=force)
    from pipelines.inspect.report import report
    from pipelines.inspect.roles import Given
    from pipelines.inspect.run import inspect_located, locate

    given = Given(label, key, time, tuple(columns) if columns else None)
    located = locate(data, run, given)  # before Ray starts: a mistake is told at once
    with (
        executor_for(context, executor, located.nbytes, local_cpus(), address),
        context.obj.counting("inspecting row groups") as progress,
    ):
        inspection = inspect_located(located, run, given, values=not no_values, sample=examples, progress=progress)
    told = report(inspection)
    show_and_write(context.obj, told, page, json_path, write)
    if write is None and told["proposal"]["yaml"] is not None:
        context.obj.next("inspect", data, "--no-html", "--write", "run.yaml")
    if check and told["counts"]["error"]:
        raise typer.Exit(1)


def check_targets(page: str | None, json_path: str | None, write: str | None, *, force: bool) -> None:
    """ConfigError for a file that would be lost. A page that inspect has made may be made anew."""
    from model.storage import exists, is_directory

    for option, path in (("--html", page), ("--json", json_path), ("--write", write)):
        if path is None:
            continue
        if path.partition("?")[0].endswith("/") or is_directory(path):
            raise _mistake(f"{option} must name a file, but {path} is a directory")
        if not force and exists(path) and not (option == "--html" and _is_ours(path)):
            raise _mistake(f"{option}: {path} is there already; add --force to overwrite it, or choose another name")


def _is_ours(path: str) -> bool:
    from model.storage import read_bytes

    return GENERATED.encode() in read_bytes(path)[:1000]


def show_and_write(
    console: Any, told: dict[str, Any], page: str | None, json_path: str | None, write: str | None
) -> None:
    """Shows the report, writes the files asked for, and says where they lie."""
    from model.storage import absolute, write_bytes
    from pipelines.inspect import html as inspect_html
    from pipelines.inspect import text as inspect_text

    inspect_text.show(told)
    if page is not None:
        write_bytes(page, inspect_html.page(told).encode())
        console.say(f"page: {absolute(page)}")
    if json_path is not None:
        write_bytes(json_path, json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n")
        console.say(f"report: {absolute(json_path)}")
    if write is not None:
        if told["proposal"]["yaml"] is None:
            raise _mistake(f"--write: no run is proposed: {told['proposal']['reason']}")
        write_bytes(write, told["proposal"]["yaml"].encode())
        console.say(f"run: {absolute(write)}; train it with: dynamic-rnn train {shlex.quote(write)}")


def _mistake(text: str) -> Exception:
    from model.errors import ConfigError

    return ConfigError(text)
