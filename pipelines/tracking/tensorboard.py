"""TensorBoard: a run's metrics and progress as event files in <run>/tensorboard. Knows no Ray and no torch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboardX import SummaryWriter

from model.bundle.run_directory import TENSORBOARD
from model.storage import is_remote, join, make_directory, write_bytes
from pipelines.tracking.follower import Progress

if TYPE_CHECKING:
    from pipelines.tracking.follower import Outcome


class TensorBoard:
    """Writes event files; into a remote run's directory they are copied at each validation and at the end.

    Points of `first_step` and later that an earlier start of the run has written are told to be void.
    """

    def __init__(self, directory: str, first_step: int) -> None:
        self.target = join(directory, TENSORBOARD)
        self._local = tempfile.TemporaryDirectory() if is_remote(directory) else None
        if self._local is None:
            make_directory(self.target)
        self._written = self.target if self._local is None else self._local.name
        self._writer = SummaryWriter(self._written, purge_step=first_step or None, filename_suffix=f".{first_step}")

    def on_progress(self, progress: Progress) -> None:
        """The loss of the latest step, rates and padding."""
        values = {
            "progress/loss": progress.loss,
            "progress/steps_per_second": progress.steps_per_second,
            "progress/real_steps_per_second": progress.real_steps_per_second,
            "progress/padding": progress.padding,
        }
        self._add(values, progress.step)

    def on_report(self, metrics: dict[str, float]) -> None:
        """The metrics of a validation; `train_loss` becomes train/loss, `validation_accuracy` validation/accuracy."""
        values = {tag_of(name): value for name, value in metrics.items() if name != "step"}
        self._add(values, round(metrics["step"]))
        self._writer.flush()
        self._copy()

    def close(self, outcome: Outcome) -> None:
        """Writes what is left."""
        self._writer.close()
        self._copy()
        if self._local is not None:
            self._local.cleanup()

    def _add(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(tag, value, step)

    def _copy(self) -> None:
        if self._local is not None:
            for file in Path(self._local.name).iterdir():
                write_bytes(join(self.target, file.name), file.read_bytes())


def tag_of(name: str) -> str:
    """TensorBoard groups by what stands before the slash."""
    for group in ("train", "validation"):
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return f"run/{name}"
