"""The rows of a step whose loss was no number, in `<run>/nan_batch.json`: what to look at before training again.

    {"step": 12, "epoch": 0.75, "problem": "the loss must be …",
     "rows": [{"file": "…/a.parquet", "row": 7, "key": "visitor 3", "length": 41}, …]}

Rows count from the file's start; `key` is the value of `data.key` where the run has one, a list of several columns'
values. Knows no Ray.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from model.batches.plan import Plan
from model.bundle.run_directory import NAN_BATCH
from model.errors import TrainingError
from model.storage import join, write_bytes
from model.tables.fragments import Fragment
from model.tables.parquet import first_row, read_fragment
from pipelines.train.steps import Step, epochs_at


def write_nan_batch(
    directory: str, plan: Plan, step: Step, key: tuple[str, ...], error: TrainingError
) -> TrainingError:
    """Writes the rows of all workers that the step was made of; the error that names the file."""
    path = join(directory, NAN_BATCH)
    told = {
        "step": step.number,
        "epoch": epochs_at(plan, step),
        "problem": str(error),
        "rows": places(plan, rows_of(plan, step), key),
    }
    write_bytes(path, (json.dumps(told, indent=1, ensure_ascii=False, default=str) + "\n").encode())
    return told_where(directory, error)


def told_where(directory: str, error: TrainingError) -> TrainingError:
    """The error with the place of its rows, as every worker raises it."""
    return TrainingError(f"{error}; the rows of its batch are listed in {join(directory, NAN_BATCH)}")


def rows_of(plan: Plan, step: Step) -> np.ndarray:
    """Numbers of the global rows of a step, sorted: of an unrolled batch, those that reach its segment."""
    rows = np.concatenate([piece.rows for piece in plan.pieces(0, 1, step.group.start, step.group.stop)])
    if step.segment:
        rows = rows[plan.index.lengths[rows] > step.group.parts[0].first_step(step.segment)]
    return np.sort(rows)


def places(plan: Plan, rows: np.ndarray, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """File, row in the file, key and length of each row."""
    told = []
    holders = np.searchsorted(plan.index.starts, rows, side="right") - 1
    for holder in np.unique(holders):
        fragment = plan.index.fragments[holder]
        within = rows[holders == holder] - plan.index.starts[holder]
        keys = _keys(fragment, within, key)
        for i, row in enumerate(within.tolist()):
            place = {"file": fragment.file, "row": first_row(fragment) + row}
            length = int(plan.index.lengths[plan.index.starts[holder] + row])
            told.append(place | ({} if keys is None else {"key": keys[i]}) | {"length": length})
    return told


def _keys(fragment: Fragment, rows: np.ndarray, key: tuple[str, ...]) -> list[Any] | None:
    """The key of each row; None where there is none."""
    if not key:
        return None
    table = read_fragment(fragment, key).take(rows)
    values = [table[name].to_pylist() for name in key]
    return values[0] if len(values) == 1 else [list(each) for each in zip(*values, strict=True)]
