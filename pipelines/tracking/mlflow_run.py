"""MLflow: one run for each training, found again by its id when the training is resumed. Knows no Ray.

<run>/mlflow.json names the MLflow run. Parameters are the run's settings by their dotted names.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from model.bundle.run_directory import MLFLOW
from model.errors import ConfigError
from model.storage import copy_tree, exists, join, read_bytes, write_bytes
from pipelines.config import MlflowConfig, RunConfig, flat
from pipelines.tracking.follower import Progress

if TYPE_CHECKING:
    from pipelines.tracking.follower import Outcome

PARAMETER_CHARACTERS = 6000  # MLflow's limit for a value
PARAMETERS_PER_CALL = 100  # likewise
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowRun:
    """Logs a training to MLflow. ConfigError without the package, or where MLflow cannot be used at the start.

    A server that fails later does not stop the training: that is told once, and metrics.jsonl holds everything.
    """

    def __init__(self, config: RunConfig, settings: MlflowConfig) -> None:
        self.directory = config.directory
        self.settings = settings
        self.client = _client(settings)
        self._logged_step = -1
        self._lost = False
        try:
            self.run_id = self._reopened() or self._created(config)
        except _mlflow_error() as error:
            raise ConfigError(f"tracking.mlflow: {settings.uri or 'MLflow'} cannot be used: {_first(error)}") from error

    def _reopened(self) -> str | None:
        """The MLflow run that an earlier start of this training made; None where there is none."""
        where = join(self.directory, MLFLOW)
        if not exists(where):
            return None
        run_id = str(json.loads(read_bytes(where))["run_id"])
        found = self.client.get_run(run_id)
        self.client.update_run(run_id, status="RUNNING")
        self._logged_step = round(found.data.metrics.get("step", -1))
        return run_id

    def _created(self, config: RunConfig) -> str:
        experiment = self.client.get_experiment_by_name(self.settings.experiment)
        number = (
            self.client.create_experiment(self.settings.experiment) if experiment is None else experiment.experiment_id
        )
        tags = {"dynamic_rnn.directory": config.directory}
        run_id = str(self.client.create_run(number, run_name=config.name, tags=tags).info.run_id)
        write_bytes(join(self.directory, MLFLOW), json.dumps({"run_id": run_id}).encode())
        from mlflow.entities import Param

        plain = flat(config.model_dump(mode="json"))
        settings = [
            Param(name, str(value)[:PARAMETER_CHARACTERS]) for name, value in plain.items() if value is not None
        ]
        for start in range(0, len(settings), 100):  # the most that one call takes
            self.client.log_batch(run_id, params=settings[start : start + 100])
        return run_id

    def on_progress(self, progress: Progress) -> None:
        """Nothing: MLflow gets the validations."""

    def on_report(self, metrics: dict[str, float]) -> None:
        """Logs a validation, once: what a restarted training computes again, with the same numbers, is there."""
        from mlflow.entities import Metric

        step = round(metrics["step"])
        if step <= self._logged_step or self._lost:
            return
        now = round(time.time() * 1000)
        logged = [Metric(name, value, now, step) for name, value in metrics.items() if math.isfinite(value)]
        self._attempt(lambda: self.client.log_batch(self.run_id, metrics=logged))
        self._logged_step = step

    def close(self, outcome: Outcome) -> None:
        """Stores the best bundle and how the training ended."""
        self._attempt(lambda: self._close(outcome))

    def _attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
        except _mlflow_error() as error:
            self._lost = True
            print(f"MLflow does not answer, training goes on without it: {_first(error)}", file=sys.stderr, flush=True)

    def _close(self, outcome: Outcome) -> None:
        if outcome.bundle is not None:
            self.client.set_tag(self.run_id, "dynamic_rnn.fingerprint", outcome.fingerprint)
            if self.settings.bundle:
                with tempfile.TemporaryDirectory() as temporary:
                    copy_tree(outcome.bundle, join(temporary, "bundle"))
                    self.client.log_artifacts(self.run_id, join(temporary, "bundle"), "bundle")
        self.client.set_terminated(self.run_id, STATUS[outcome.status])


def _client(settings: MlflowConfig) -> Any:
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ConfigError(
            "tracking.mlflow needs MLflow, which is not installed: pip install 'dynamic-rnn[mlflow]'"
        ) from error
    return MlflowClient(tracking_uri=settings.uri)


def _mlflow_error() -> Any:
    from mlflow.exceptions import MlflowException

    return MlflowException


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
