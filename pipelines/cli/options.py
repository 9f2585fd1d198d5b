"""What the commands share: their arguments and options, and the Ray they run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer

ConfigFile = Annotated[str, typer.Argument(metavar="RUN.YAML", help="the run's settings: a path or URI")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to override, e.g. train.epochs=3")
]
BundlePath = Annotated[str, typer.Argument(metavar="BUNDLE", help="a bundle, or the directory of a run or sweep")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the run in this directory")]
ResumeIfExists = Annotated[
    bool, typer.Option("--resume-if-exists", help="go on where there is something to go on with, else start")
]
DataPath = Annotated[str, typer.Argument(metavar="DATA", help="Parquet file, directory, glob or URI")]
Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="MODULE", help="module that registers cells (repeatable)")
]
PartitionTypeOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--partition-types",
        metavar="COLUMN=TYPE",
        help="type of a column in the paths: string, int64 or float64 (repeatable); default: as it is written",
    ),
]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to join; default: one on this machine")]

ExecutorChoice = Literal["auto", "local", "ray"]  # as pipelines.config has it, which --help need not load
Executor = Annotated[
    ExecutorChoice,
    typer.Option("--executor", help="compute in this process or on Ray; auto: on Ray where there is much to read"),
]


@contextmanager
def executor_for(
    context: typer.Context,
    choice: ExecutorChoice,
    nbytes: int,
    cpus: int,
    address: str | None,
    *,
    workers: object = 1,
) -> Iterator[None]:
    """This process alone or a Ray (`ray_for`), by choice and by what there is to read; says which, and why."""
    from pipelines.cluster.executor import choose_executor

    chosen = choose_executor(choice, nbytes, address=address, workers=workers)
    context.obj.note(chosen.line)
    if chosen.ray:
        with _session(context, cpus, address):
            yield
    else:
        from pipelines.cluster.malloc import OF_COMPUTING, keep_freed_memory

        keep_freed_memory(OF_COMPUTING)
        yield


def ray_for(context: typer.Context, cpus: int, address: str | None) -> Any:
    """A session on the cluster at `address`, or on a private Ray, with `cpus` for workers; says that it starts."""
    context.obj.note("starting Ray …" if address is None else f"joining Ray at {address} …")
    return _session(context, cpus, address)


def _session(context: typer.Context, cpus: int, address: str | None) -> Any:
    from pipelines.cluster.capacity import logical_cpus_for
    from pipelines.cluster.session import ray_session

    return ray_session(logical_cpus=logical_cpus_for(cpus), address=address, quiet=not context.meta["debug"])


def partition_types_of(given: list[str] | None) -> Any:
    """The types by column. ConfigError for what is none."""
    from model.errors import ConfigError
    from model.tables.hive_paths import PARTITION_TYPES

    found = {}
    for each in given or ():
        name, _, kind = each.rpartition("=")
        if not name or kind not in PARTITION_TYPES:
            raise ConfigError(
                f"--partition-types must be COLUMN=TYPE, of {', '.join(PARTITION_TYPES)}, but is {each!r}"
            )
        found[name] = kind
    return found


def local_cpus() -> int:
    """The logical CPUs of a private Ray that scores or reads data."""
    return max(2, os.cpu_count() or 1)
