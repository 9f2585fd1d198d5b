"""Run directories: `best` and `latest` are small text files that name a bundle below them, replaced atomically.

Whoever takes a bundle's path takes a run directory's as well and means its best bundle. Knows no Ray.
"""

from __future__ import annotations

import re
from typing import Literal

from model.errors import CheckpointError
from model.settings import Settings, build, load_settings
from model.storage import absolute, exists, join, list_names, read_bytes, write_bytes
from model.storage.filesystems import PathLike

Pointer = Literal["best", "latest"]
# The names in the directory of a run or a sweep; what lies in a bundle, but for MANIFEST, is `model.bundle.bundle`'s.
MANIFEST = "MANIFEST.json"  # written last: a directory without it is not a bundle
RUN_YAML = "run.yaml"  # the settings of a run
COLUMNS = "data/columns.json"  # fitted columns and label; the last of data/ that a scan writes
TRAIN_INDEX, VALIDATION_INDEX = "data/train.npz", "data/validation.npz"  # row groups, and where their rows stand in:
LENGTHS = "data/lengths.npy"  # the length of each row, mapped into memory by all workers
ROW_COUNTS = "data/rows.json"  # for people: what became of the rows
FIT_SIGNATURE = "data/signature.json"  # the settings and files that the columns were fitted on
QUARANTINE = "quarantine"  # rows that were set aside
START = "start"  # the bundle that all workers of a warm start begin with
METRICS = "metrics.jsonl"  # what a run or a sweep has once it has something to lose
BUNDLES = "bundles"
STATUS = "status.json"  # how it stands, by its driver
ENDED = "ended.json"  # why training ended
ERROR = "error.json"  # a mistake of the user's, on its way from a worker to the driver
NAN_BATCH = "nan_batch.json"  # rows of a step whose loss was no number
REPORT = "report.html"
TENSORBOARD = "tensorboard"
MLFLOW = "mlflow.json"  # which run of MLflow's it is
RAY_TRAIN, CHECKPOINT_PREFIX = "train", "checkpoint_"  # Ray Train's directory, and what to resume from in a run's
RAY_TUNE = "tune"  # Ray Tune's directory, which only a sweep holds
TRIALS = "trials.jsonl"  # what a sweep has once it has ended, or was stopped
BEST_YAML = "best.yaml"  # the settings of a sweep's best trial, as a run to train next


def checkpoint_names(directory: PathLike) -> list[str]:
    """Checkpoints in Ray Train's directory of a run, the oldest first; its own files have other names."""
    names = [name for name in list_names(directory) if name.startswith(CHECKPOINT_PREFIX)]
    return [name for name in names if name[len(CHECKPOINT_PREFIX)].isdigit()]


def has_begun(directory: PathLike) -> bool:
    """Whether a run or a sweep has something to go on from: what failed before its first checkpoint starts anew."""
    return exists(join(directory, METRICS)) or bool(checkpoint_names(join(directory, RAY_TRAIN)))


def bundle_name(step: int, trial: str | None = None) -> str:
    """Where below a run's or a sweep's directory the bundle of a report lies: of that step (and trial)."""
    return f"{BUNDLES}/step_{step:08d}" if trial is None else f"{BUNDLES}/trial_{trial}_step_{step:08d}"


def point_to(run_directory: PathLike, pointer: Pointer, bundle: str) -> None:
    """Makes a pointer name `bundle`, a path relative to the run directory."""
    write_bytes(join(run_directory, pointer), f"{bundle}\n".encode())


def pointed(run_directory: PathLike, pointer: Pointer) -> str | None:
    """The bundle a pointer names (relative to the run directory); None where there is no pointer."""
    if not exists(join(run_directory, pointer)):
        return None
    return read_bytes(join(run_directory, pointer)).decode().strip()


def resolve_bundle(path: PathLike) -> str:
    """The bundle directory that `path` means: itself, or a run's best. CheckpointError where it is neither."""
    text = absolute(path)
    if exists(join(text, MANIFEST)):
        return text
    best = pointed(text, "best") if exists(text) else None
    if best is not None:
        return join(text, best)
    reason = "has neither a MANIFEST.json nor a `best` file" if exists(text) else "does not exist"
    raise CheckpointError(f"{text}: must be a bundle or the directory of a run, but {reason}")


def run_of(bundle: PathLike) -> str | None:
    """The directory of the run or sweep that a bundle's directory lies in; None where it lies by itself."""
    path = absolute(bundle)
    run = re.sub(rf"/{BUNDLES}/[^/?]+(?=\?|$)", "", path)
    return run if run != path and exists(join(run, RUN_YAML)) else None


class DataChoices(Settings):
    """What a run does with bad rows and initial states; evaluations and predictions by its bundles do the same."""

    on_bad_rows: Literal["error", "skip"] = "error"
    initial_states: Literal["read", "ignore"] = "read"


def data_choices(bundle: PathLike, **given: str | None) -> DataChoices:
    """What is given (not None), else as the run has it that a bundle lies in, else the defaults."""
    run = run_of(bundle)
    where = "" if run is None else join(run, RUN_YAML)
    stored = {} if run is None else load_settings(where).get("data") or {}
    chosen = {name: stored[name] for name in DataChoices.model_fields if name in stored}
    options = {name: str(value) for name, value in given.items() if value is not None}
    return build(DataChoices, chosen | options, where=f"{where or 'options'}: data")
