"""Followers of a training: its status file, TensorBoard and MLflow, fed by the driver from what its workers tell.

A follower is told progress and validations, and at the end how it ended. They run in the driver, so that workers
wait for nobody. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from model.errors import first_line
from pipelines.config import RunConfig
from pipelines.tracking.follower import Follower, Outcome
from pipelines.tracking.run_status import StatusFile

OnProgress = Callable[[Any], None]
OnReport = Callable[[dict[str, float]], None]


@dataclass
class Followed:
    """The callbacks of a followed training; `finish` is called with its result."""

    on_progress: OnProgress
    on_report: OnReport
    outcome: Outcome = field(default_factory=Outcome)

    def finish(self, bundle: str, fingerprint: str, reason: str | None = None) -> None:
        """Tells the followers, when the block ends, that all went well, and why training ended there."""
        self.outcome = Outcome("finished", bundle, fingerprint, reason)


@contextmanager
def followed(
    config: RunConfig, first_step: int, on_progress: OnProgress | None, on_report: OnReport | None
) -> Iterator[Followed]:
    """Callbacks that tell the run's followers, too. `first_step`: what was told of later steps is computed again.

    ConfigError where a follower that is asked for cannot be had.
    """
    followers = list(_followers(config, first_step))
    tell_progress = [*(each.on_progress for each in followers), *([on_progress] if on_progress else [])]
    tell_report = [*(each.on_report for each in followers), *([on_report] if on_report else [])]
    told = Followed(lambda progress: _tell(tell_progress, progress), lambda metrics: _tell(tell_report, metrics))
    with ExitStack() as stack:
        for follower in followers:
            stack.callback(_close, follower, told)
        try:
            yield told
        except KeyboardInterrupt:
            told.outcome = Outcome("interrupted")
            raise
        except Exception as error:
            told.outcome = Outcome("failed", reason=first_line(error))
            raise


def _close(follower: Follower, told: Followed) -> None:
    follower.close(told.outcome)


def _tell(listeners: list[Callable[[Any], None]], what: Any) -> None:
    for listener in listeners:
        listener(what)


def _followers(config: RunConfig, first_step: int) -> Iterator[Follower]:
    early = config.train.early_stopping
    yield StatusFile(config.directory, None if early is None else early.metric)
    if config.tracking.tensorboard:
        from pipelines.tracking.tensorboard import TensorBoard

        yield TensorBoard(config.directory, first_step)
    if config.tracking.mlflow is not None:
        from pipelines.tracking.mlflow_run import MlflowRun

        yield MlflowRun(config, config.tracking.mlflow)
