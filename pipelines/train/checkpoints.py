"""Checkpoints to resume from, in Ray Train's directory of the run: written by rank 0, counted only when whole.

A checkpoint is written where it stays, each file atomically and the MANIFEST last, and then told to Ray Train, which
gives the latest one it was told of to every start of the workers. One that a kill has cut short was never told; one
that was damaged since does not verify, and the one before is taken.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import ray.train

from model.bundle.bundle import Bundle, TrainingState, load_bundle, load_training_state, save_bundle
from model.bundle.run_directory import CHECKPOINT_PREFIX as PREFIX
from model.bundle.run_directory import MANIFEST, checkpoint_names
from model.errors import CheckpointError
from model.storage import exists, join, remove_tree
from pipelines.train.job import Report


def write_checkpoint(directory: str, report: Report) -> Any:
    """Writes a checkpoint into Ray Train's directory of the run, under a name that no other has."""
    # Not by its step alone: a step that is computed again must not overwrite what Ray Train still counts on.
    path = join(directory, f"{PREFIX}{report.step:08d}_{uuid.uuid4().hex[:12]}")
    save_bundle(path, report.bundle, report.training)
    return ray.train.Checkpoint(path)


def remove_untold(directory: str) -> None:
    """Removes what a kill has left of a write, and whole checkpoints of which Ray Train was never told.

    Their steps are computed again. For a worker's start: later, Ray Train deletes old checkpoints at the same time.
    """
    known = _known_name()
    for name in checkpoint_names(directory):
        untold = name != known and _step(name) >= _step(known)
        if untold or not exists(join(directory, name, MANIFEST)):
            remove_tree(join(directory, name))


def _known_name() -> str:
    """The latest checkpoint that Ray Train was told of; "" at the start of a run."""
    known = ray.train.get_checkpoint()
    return "" if known is None else str(known.path).rstrip("/").rpartition("/")[2]


def _step(name: str) -> int:
    return int(name.removeprefix(PREFIX).partition("_")[0] or 0)


def report_to_ray(meet: Callable[..., None], metrics: dict[str, float], checkpoint: Any = None) -> None:
    """Ray Train's report, to which every rank comes; `meet` is that report, watched. Nothing is copied."""
    meet(metrics, checkpoint=checkpoint, checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD)


def latest_checkpoint(directory: str) -> tuple[Bundle, TrainingState] | None:
    """The newest whole checkpoint that is no newer than what Ray Train knows; None at the start of a run.

    CheckpointError where all of them are damaged: to begin anew would be to lose the run silently.
    """
    known = _known_name()
    return newest_whole(directory, known) if known else None


def newest_whole(directory: str, name: str) -> tuple[Bundle, TrainingState]:
    """The checkpoint `name` or, where it does not verify, the newest one before it that does."""
    earlier = [each for each in checkpoint_names(directory) if each < name]
    faults = []
    for each in [name, *reversed(earlier)]:
        path = join(directory, each)
        try:
            return load_bundle(path), load_training_state(path)
        except CheckpointError as error:
            faults.append(str(error))
    raise CheckpointError(
        f"{directory}: a checkpoint to go on from must be whole, but {'; '.join(faults)}; restore one of them, or "
        f"start a new run under another name"
    )
