"""Followers of a training: TensorBoard's event files and MLflow's runs, read by their own readers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.config import ModelConfig
from model.errors import ConfigError, TrainingError
from pipelines.config import RunConfig, run_config
from pipelines.tracking.follower import Progress
from pipelines.tracking.followers import followed

# SQLAlchemy's and protobuf's own modules use what they have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(mlflow|sqlalchemy|google|tensorboard)"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]

MakeRun = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow keeps the artefacts of a database in the current directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_run(tmp_path: Path, make_config: Callable[..., ModelConfig]) -> MakeRun:
    """make_run(data, **tracking): a run over `data`, followed as `tracking` says."""

    def make(data: Path, **tracking: Any) -> RunConfig:
        return run_config(
            {
                "output": str(tmp_path / "runs"),
                "data": {"train": str(data), "validation_fraction": 0.2},
                "model": make_config().model_dump(mode="json"),
                "train": {"steps": 4, "batch_sequences": 8, "evaluate_every_steps": 2},
                "tracking": tracking,
            },
            where="run.yaml",
        )

    return make


def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def progress(step: int) -> Progress:
    return Progress(step, 10, step / 5, 0.5, 20.0, 900.0, 1.05, 1.0)


def report(step: int, loss: float) -> dict[str, float]:
    return {"step": float(step), "epoch": step / 5, "train_loss": loss, "validation_accuracy": 0.75}


def told(config: RunConfig, steps: list[int], first_step: int = 0, *, ends: bool = True, stops: bool = False) -> None:
    """Follows a training that tells these steps, each with a loss of 1 / step; `stops`: by Ctrl-C."""
    with followed(config, first_step, None, None) as followers:
        for step in steps:
            assert followers.on_progress is not None
            followers.on_progress(progress(step))
            followers.on_report(report(step, 1 / step))
        if stops:
            raise KeyboardInterrupt
        if ends:
            followers.finish(config.directory, "abc")


def scalars(directory: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"{directory}/tensorboard")
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_status_says_why_a_training_ended(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(tmp_path)

    def status() -> tuple[str, str | None]:
        told = json.loads(Path(config.directory, "status.json").read_text())
        return told["status"], told["reason"]

    with followed(config, 0, None, None) as followers:
        assert status() == ("running", None)
        followers.finish(config.directory, "abc", "all of its 5 steps are made")
    assert status() == ("finished", "all of its 5 steps are made")
    with pytest.raises(TrainingError), followed(config, 0, None, None):
        raise TrainingError("step 3: the loss is nan\nand more")
    assert status() == ("failed", "step 3: the loss is nan")


def test_tensorboard_shows_progress_and_validations(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(tmp_path)
    told(config, [2, 4])
    shown = scalars(config.directory)
    assert shown["train/loss"] == [(2, 0.5), (4, 0.25)]
    assert shown["validation/accuracy"] == [(2, 0.75), (4, 0.75)]
    assert shown["progress/steps_per_second"] == [(2, 20.0), (4, 20.0)]
    assert set(shown) == {
        *("progress/loss", "progress/padding", "progress/real_steps_per_second", "progress/steps_per_second"),
        *("run/epoch", "train/loss", "validation/accuracy"),
    }


def test_tensorboard_shows_each_step_of_a_resumed_run_once(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(tmp_path)
    told(config, [2, 4, 6], ends=False)
    told(config, [6, 8], first_step=5)  # killed after step 6, whose checkpoint was not written
    shown = scalars(config.directory)
    assert dict(shown["train/loss"]) == pytest.approx({2: 1 / 2, 4: 1 / 4, 6: 1 / 6, 8: 1 / 8})
    assert [step for step, _ in shown["progress/loss"]] == [2, 4, 6, 8]


def test_no_event_files_where_none_are_wanted(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(tmp_path, tensorboard=False)
    told(config, [2])
    assert not Path(config.directory, "tensorboard").exists()


def mlflow_runs(uri: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    found = MlflowClient(tracking_uri=uri).get_metric_history(run_id, metric)
    return sorted((each.step, each.value) for each in found)


@pytest.mark.slow  # MLflow makes its database, step by step
def test_a_resumed_training_goes_on_with_its_mlflow_run(make_run: MakeRun, tmp_path: Path) -> None:
    uri = database(tmp_path)
    config = make_run(tmp_path, mlflow={"uri": uri, "experiment": "tried", "bundle": False})
    with pytest.raises(KeyboardInterrupt):
        told(config, [2], stops=True)
    (stopped,) = mlflow_runs(uri)
    assert (stopped.info.status, stopped.info.run_name) == ("KILLED", "run")
    told(config, [2, 4], first_step=3)
    (run,) = mlflow_runs(uri)
    assert run.info.status == "FINISHED"
    assert history(uri, run.info.run_id, "train_loss") == [(2, 0.5), (4, 0.25)]  # the second step 2 is the first's
    assert run.data.params["model.num_units"] == "[4, 3]"
    assert run.data.params["train.batch_sequences"] == "8"
    assert run.data.tags["dynamic_rnn.fingerprint"] == "abc"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_training_is_followed_to_its_bundle(
    make_run: MakeRun, make_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    from mlflow.artifacts import download_artifacts

    from model.bundle.bundle import load_bundle
    from pipelines.train.run import train

    uri = database(tmp_path)
    pq.write_table(make_table(rows=60), tmp_path / "data.parquet")
    config = make_run(tmp_path / "data.parquet", mlflow={"uri": uri, "experiment": "tried"})
    result = train(config)
    (run,) = mlflow_runs(uri)
    fetched = download_artifacts(
        run_id=run.info.run_id, artifact_path="bundle", dst_path=str(tmp_path), tracking_uri=uri
    )
    assert load_bundle(fetched).fingerprint == result.fingerprint == run.data.tags["dynamic_rnn.fingerprint"]
    steps = [step for step, _ in history(uri, run.info.run_id, "validation_loss")]
    assert steps == [2, 4]
    assert [step for step, _ in scalars(config.directory)["validation/loss"]] == steps


def test_a_server_that_does_not_answer_is_told_before_the_training(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = make_run(tmp_path, mlflow={"uri": "http://127.0.0.1:9"})  # the discard port: nobody listens
    with (
        pytest.raises(ConfigError, match=r"^tracking\.mlflow: http://127\.0\.0\.1:9 cannot be used: "),
        followed(config, 0, None, None),
    ):
        raise AssertionError("the block is not entered")


def test_mlflow_that_is_not_installed_is_told(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    config = make_run(tmp_path, mlflow={})
    message = r"^tracking\.mlflow needs MLflow, which is not installed: pip install 'dynamic-rnn\[mlflow\]'$"
    with pytest.raises(ConfigError, match=message), followed(config, 0, None, None):
        raise AssertionError("the block is not entered")
