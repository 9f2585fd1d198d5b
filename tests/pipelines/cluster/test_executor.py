"""Where a command computes: by choice, by what there is to read, by workers, and by a cluster that is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.errors import ConfigError
from pipelines.cluster import executor
from pipelines.cluster.executor import LOCAL_BYTES, choose_executor
from pipelines.cluster.machine import torch_threads
from pipelines.config import RunConfig, run_config
from pipelines.train.run import trains_here


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is named, and this process is connected to none, whatever ran before."""
    monkeypatch.setattr(executor, "ray_is_running", lambda: False)
    monkeypatch.setattr("pipelines.train.run.ray_is_running", lambda: False)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("choice", "nbytes", "workers", "ray", "line"),
    [
        ("auto", LOCAL_BYTES, 1, False, "computing in this process: 32.0 MiB to read, less than Ray takes to start"),
        ("auto", LOCAL_BYTES + 1, 1, True, "starting Ray: 32.0 MiB to read …"),
        ("auto", 0, 2, True, "starting Ray: resources.workers is 2 …"),
        ("auto", 0, "auto", True, "starting Ray: resources.workers is auto …"),
        ("local", 2**40, 1, False, "computing in this process, as executor=local says"),
        ("ray", 0, 1, True, "starting Ray: executor=ray …"),
    ],
)
def test_the_choice_is_told_with_its_reason(choice: str, nbytes: int, workers: object, ray: bool, line: str) -> None:
    chosen = choose_executor(choice, nbytes, address=None, workers=workers)  # type: ignore[arg-type]
    assert (chosen.ray, chosen.line) == (ray, line)


def test_a_cluster_that_is_named_is_joined_whatever_there_is_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_executor("auto", 0, address="head:6379").line == "joining Ray at head:6379 …"
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    assert choose_executor("auto", 0, address=None).line == "joining Ray at other:6379 …"
    assert not choose_executor("local", 0, address=None).ray
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert choose_executor("auto", 0, address=None).line == "joining Ray at auto …"
    with pytest.raises(ConfigError) as told:
        choose_executor("local", 0, address="head:6379")
    assert str(told.value) == ("executor local computes in this process, but the Ray cluster head:6379 is to be joined")


def test_a_connected_ray_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "ray_is_running", lambda: True)
    chosen = choose_executor("auto", 0, address=None)
    assert (chosen.ray, chosen.line) == (True, "computing on the connected Ray")


def run_of(tmp_path: Path, **resources: object) -> RunConfig:
    model = {
        "problem_type": "classification",
        "prediction_type": "single_value",
        "num_units": [2],
        "label": "y",
        "columns": {"sequence": [{"type": "numeric", "name": "x"}]},
    }
    run = {"output": str(tmp_path), "data": {"train": "x"}, "model": model, "resources": resources}
    return run_config(run, where="run")


def test_a_training_says_what_it_needs_ray_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trains_here(run_of(tmp_path))
    for resources in ({"executor": "ray"}, {"workers": 2}):
        with pytest.raises(ConfigError, match=r"needs Ray, but this process is not connected: train within `with "):
            trains_here(run_of(tmp_path, **resources))
    with pytest.raises(ConfigError) as told:
        trains_here(run_of(tmp_path, executor="local", workers=2))
    assert str(told.value) == ("resources.executor local is one process, but resources.workers is 2: set it to 1")
    monkeypatch.setattr("pipelines.train.run.ray_is_running", lambda: True)
    assert not trains_here(run_of(tmp_path))
    assert trains_here(run_of(tmp_path, executor="local"))


def test_torch_has_its_threads_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def fails() -> None:
        with torch_threads(before + 1):
            raise KeyError(torch.get_num_threads())

    with pytest.raises(KeyError, match=str(before + 1)):
        fails()
    assert torch.get_num_threads() == before
