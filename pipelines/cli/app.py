"""The front door: `dynamic-rnn COMMAND`. Thin commands over the rooms, each opened only when its command runs.

Mistakes of the user's end with one line and exit code 2 (`--debug` shows the traceback); Ctrl-C with 130.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from model.errors import DynamicRnnError
from pipelines.cli.convert import export, import_tf
from pipelines.cli.fit_columns import fit_columns
from pipelines.cli.inspect import inspect
from pipelines.cli.options import (
    Address,
    BundlePath,
    ConfigFile,
    Overrides,
    Plugins,
    Resume,
    ResumeIfExists,
    executor_for,
    local_cpus,
    ray_for,
)
from pipelines.cli.prepare import prepare
from pipelines.cli.runs import runs
from pipelines.cli.score import evaluate, evaluate_data, predict, predict_data
from pipelines.cli.settings import settings
from pipelines.console import Console

if TYPE_CHECKING:
    from pipelines.config import RunConfig


class Door(TyperGroup):
    """Turns what ends a command into one line and an exit code: 2 for a mistake of the user's, 130 for Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DynamicRnnError as error:
            if ctx.meta.get("debug"):
                raise
            print(f"dynamic-rnn: {error}", file=sys.stderr, flush=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            print("dynamic-rnn: interrupted", file=sys.stderr, flush=True)
            raise typer.Exit(130) from interrupt


app = typer.Typer(
    cls=Door,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    help="Recurrent models over Parquet sequences: trained, swept and served on Ray.",
    epilog="Each command has its own --help. Settings are a YAML file plus overrides such as train.epochs=3.",
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dynamic-rnn {version('dynamic-rnn')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_tell_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only results")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks, and what Ray says")] = False,
) -> None:
    """Options of every command; they stand before its name."""
    # Modules named under `plugins:` may lie here. Last, so that no directory here hides a package of ours; Ray hands
    # the path on to its workers.
    sys.path.append(os.getcwd())
    context.obj = Console(quiet=quiet)
    context.meta["debug"] = debug


@app.command()
def train(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    resume_if_exists: ResumeIfExists = False,
) -> None:
    """Train a model: Parquet in, a bundle out."""
    from model.bundle.run_directory import has_begun
    from pipelines.cluster.worker_count import room_for
    from pipelines.config import load_run
    from pipelines.ingest.scan import find_data
    from pipelines.train.check import check_run

    run = load_run(config, overrides or [])
    resume = resume or (resume_if_exists and has_begun(run.directory))
    check_run(run, resume=resume)  # before Ray starts: a mistake is told at once
    nbytes, resources = sum(found.nbytes for found in find_data(run)), run.resources
    with executor_for(
        context, resources.executor, nbytes, room_for(resources), resources.address, workers=resources.workers
    ):
        result = _train(context.obj, run, resume=resume)
    context.obj.say(f"training ended: {result.ended}")
    context.obj.table(f"best bundle: {result.bundle}", result.metrics | {"fingerprint": result.fingerprint})
    if result.report is not None:
        context.obj.say(f"report: {result.report}")
    context.obj.next("evaluate", result.directory, run.data.test or "TEST_DATA")


def _train(console: Console, run: RunConfig, *, resume: bool = False) -> Any:
    from pipelines.train.run import train as train_run

    with console.training() as display:
        try:
            return train_run(
                run,
                resume=resume,
                on_scan=display.on_scan,
                on_progress=display.on_progress,
                on_report=display.on_report,
                say=console.note,
            )
        except KeyboardInterrupt:
            display.close()
            console.note(kept_after_interrupt(run.directory))
            raise


def kept_after_interrupt(directory: str) -> str:
    """What a stopped run has left, and how to go on."""
    from model.bundle.run_directory import pointed
    from model.storage import join

    best = pointed(directory, "best")
    kept = "no bundle yet" if best is None else f"the best bundle so far is {join(directory, best)}"
    return f"stopped: {kept}; go on from the last checkpoint with --resume ({directory})"


@app.command()
def tune(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    resume_if_exists: ResumeIfExists = False,
) -> None:
    """Sweep num_units, cell_type, dropout and more; the best trial's bundle is kept."""
    from model.bundle.run_directory import BEST_YAML, has_begun
    from model.storage import find_files, join
    from pipelines.config import load_run
    from tune.check import check_states, check_sweep
    from tune.config import ray_cpus

    run = load_run(config, overrides or [])
    resume = resume or (resume_if_exists and has_begun(run.directory))
    tuning = check_sweep(run, resume=resume)  # before Ray starts: a mistake is told at once
    find_files(run.data.train)
    if not resume:
        check_states(run, tuning)
    with ray_for(context, ray_cpus(run) - 2, run.resources.address):
        result = _tune(context.obj, run, resume=resume)
    context.obj.next("train", join(result.directory, BEST_YAML))


def _tune(console: Console, run: RunConfig, *, resume: bool = False) -> Any:
    from tune.report import table
    from tune.sweep import sweep

    result = sweep(run, resume=resume, on_report=console.note)
    console.say(table(result))
    console.say(f"best bundle: {result.bundle}")
    return result


app.command()(inspect)
app.command("fit-columns")(fit_columns)
app.command()(evaluate)
app.command()(predict)
app.command()(prepare)
app.command()(runs)


@app.command()
def serve(
    context: typer.Context,
    bundle: BundlePath,
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML with a serve: section; default: the run's own")
    ] = None,
    plugin: Plugins = None,
    address: Address = None,
) -> None:
    """Serve a bundle over HTTP with state passthrough, until Ctrl-C. Overrides: serve.port=8001 …"""
    from model.bundle.run_directory import resolve_bundle

    path = resolve_bundle(bundle)
    settings = serve_settings(bundle, config, overrides or [], plugin or [])
    from serve.run import run

    with ray_for(context, local_cpus(), address):
        run(path, settings, blocking=True, on_ready=lambda handle: _told_ready(context.obj, handle.url))


def _told_ready(console: Console, url: str) -> None:
    console.say(f"serving at {url}: POST /v1/predict, GET /v1/model, /docs; Ctrl-C ends it")
    console.note(f"next, in another terminal: curl {url}/v1/model")


def serve_settings(bundle: str, config: Path | None, overrides: list[str], plugins: list[str]) -> Any:
    """The serve section of `config` or of the run that holds the bundle, with overrides `serve.…=`, and all plugins."""
    from model.bundle.run_directory import RUN_YAML
    from model.registry import import_plugins
    from model.settings import apply_overrides, build, load_settings
    from model.storage import absolute, exists, join
    from serve.config import ServeConfig

    where = join(absolute(bundle), RUN_YAML)
    path = str(config) if config is not None else where if exists(where) else None
    mapping = {} if path is None else load_settings(path)
    section = apply_overrides({"serve": mapping.get("serve") or {}}, overrides)
    given = section["serve"] or {}
    named = [*(mapping.get("plugins") or []), *(given.get("plugins") or []), *plugins]
    settings = build(ServeConfig, {**given, "plugins": named}, where=f"{path or 'overrides'}: serve")
    import_plugins(settings.plugins)
    return settings


app.command("import-tf")(import_tf)
app.command()(export)


@app.command("demo-data")
def demo_data(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="where to write train/, validation/ and test/")],
    max_bytes: Annotated[int, typer.Option(help="about how much text to take", min=30_000)] = 3_000_000,
) -> None:
    """Write the demo's data: the source code of Python's own standard library, as sequences of characters."""
    from pipelines.demo.data import write_demo_data

    data = write_demo_data(directory, max_bytes=max_bytes)
    for split in (data.train, data.validation, data.test):
        context.obj.say(f"{split.path}: {split.rows} rows, {split.characters} characters of {split.files} source files")
    context.obj.next("inspect", str(directory / "train"))


@app.command()
def demo(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="where data, runs and predictions go")] = Path("demo-run"),
    quick: Annotated[bool, typer.Option("--quick", help="a minute instead of five: less data, fewer steps")] = False,
) -> None:
    """The whole product on real data: train, sweep, evaluate, predict, serve, and complete code over HTTP."""
    from pipelines.cluster.worker_count import room_for
    from pipelines.demo import run as stages

    config = stages.load(directory, quick=quick)
    console = context.obj
    with ray_for(context, room_for(config.resources), None):
        from serve.client import Client

        rooms = stages.Stages(
            train=lambda run: _train(console, run),
            tune=lambda run: _tune(console, run),
            evaluate=lambda bundle, data: evaluate_data(console, bundle, data),
            predict=lambda bundle, data, output: predict_data(console, bundle, data, output),
            start_server=lambda bundle: _start_server(bundle, config),
            connect=Client,
        )
        try:
            stages.run(stages.Demo(config, directory.resolve(), console, rooms, quick=quick))
        except KeyboardInterrupt:
            console.note(f"stopped: what was made so far lies in {directory.resolve() / 'data'} and {config.output}")
            raise


def _start_server(bundle: str, config: RunConfig) -> Any:
    """The run's server, on another port where its own is taken."""
    from model.settings import build
    from pipelines.cluster.machine import port_is_free
    from serve.config import ServeConfig
    from serve.run import run

    settings = build(ServeConfig, config.serve or {}, where="serve")
    if not port_is_free(settings.port):
        settings = settings.model_copy(update={"port": _free_port()})
    return run(bundle, settings)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@app.command()
def doctor(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="where runs would be written")] = Path("."),
    start_ray: Annotated[bool, typer.Option("--ray/--no-ray", help="also start Ray and run a task")] = True,
) -> None:
    """Check this machine: Python, packages, Ray, GPU, shared memory, ports, write access."""
    from pipelines.cluster.doctor import run

    code = run(directory, start_ray=start_ray)
    if not code:
        context.obj.next("demo")
    raise typer.Exit(code)


app.command()(settings)


def main() -> None:
    """Runs the command line; see `Door` for the exit codes."""
    app()
