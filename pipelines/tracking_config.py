"""The `tracking:` section: where a training's metrics go beside metrics.jsonl and the terminal."""

from __future__ import annotations

from pydantic import Field

from model.settings import Settings


class MlflowConfig(Settings):
    """An MLflow run for each training; needs the extra `dynamic-rnn[mlflow]`."""

    uri: str | None = Field(None, description="tracking server or database; null takes MLFLOW_TRACKING_URI")
    experiment: str = Field("dynamic-rnn", description="experiment that gets the run; created where there is none")
    bundle: bool = Field(True, description="store the best bundle as an artefact of the run")


class TrackingConfig(Settings):
    """Followers of a training."""

    tensorboard: bool = Field(True, description="event files in the run's directory, below `tensorboard`")
    report: bool = Field(True, description="write report.html into the run's directory at the end")
    mlflow: MlflowConfig | None = Field(None, description="log to MLflow; {} takes the defaults")
