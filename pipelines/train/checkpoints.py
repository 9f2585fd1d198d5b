"""Checkpoints to resume from, in `train/` of the run's directory: written by rank 0, counted only when whole.

A checkpoint is written where it stays, each file atomically and the MANIFEST last. Ray Train is told of it then, and
gives the latest one it was told of to every start of the workers; a training in one process goes on from the newest
whole one. One that a kill has cut short is none; one that was damaged since does not verify, and the one before is
taken. Either way goes on from what the other has left. Knows no Ray.
"""

from __future__ import annotations

import uuid

from model.bundle.bundle import Bundle, TrainingState, load_bundle, load_training_state, save_bundle
from model.bundle.run_directory import CHECKPOINT_PREFIX as PREFIX
from model.bundle.run_directory import MANIFEST, checkpoint_names
from model.errors import CheckpointError
from model.storage import exists, join, remove_file, remove_tree
from pipelines.train.job import Report

KEPT_CHECKPOINTS = 2  # the latest, and one for the case that it is damaged
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"  # of Ray Train: which checkpoints it was told of


def write_checkpoint(directory: str, report: Report) -> str:
    """Writes a checkpoint under a name that no other has; where it lies."""
    # Not by its step alone: a step that is computed again must not overwrite what Ray Train still counts on.
    path = join(directory, f"{PREFIX}{report.step:08d}_{uuid.uuid4().hex[:12]}")
    save_bundle(path, report.bundle, report.training)
    return path


def step_of(name: str) -> int:
    """The step of a checkpoint by its name; 0 for no name."""
    return int(name.removeprefix(PREFIX).partition("_")[0] or 0)


def newest_whole(directory: str, name: str) -> tuple[Bundle, TrainingState]:
    """The checkpoint `name` or, where it does not verify, the newest one before it that does.

    CheckpointError where all of them are damaged: to begin anew would be to lose the run silently.
    """
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


# Without Ray Train ----------------------------------------------------------------------------------------------------


def take_over(directory: str) -> tuple[Bundle, TrainingState] | None:
    """What a training in one process goes on from: the newest whole checkpoint; None at the start of a run.

    What a kill has cut short is removed, and so is Ray Train's account of its checkpoints, which ends here.
    """
    for name in checkpoint_names(directory):
        if not exists(join(directory, name, MANIFEST)):
            remove_tree(join(directory, name))
    remove_file(join(directory, RAY_SNAPSHOT))
    name = _newest(directory)
    return newest_whole(directory, name) if name else None


def keep_latest(directory: str) -> None:
    """Removes all but the latest checkpoints."""
    for name in checkpoint_names(directory)[:-KEPT_CHECKPOINTS]:
        remove_tree(join(directory, name))


def left_by_local(directory: str) -> str:
    """The newest checkpoint of a training in one process, of which Ray Train knows nothing; "" where it knows its own,
    or there is none."""
    return "" if exists(join(directory, RAY_SNAPSHOT)) else _newest(directory)


def _newest(directory: str) -> str:
    """The newest name with a MANIFEST; "" where there is none."""
    whole = [name for name in checkpoint_names(directory) if exists(join(directory, name, MANIFEST))]
    return whole[-1] if whole else ""
