"""N workers train what one worker trains: every optimizer, both prediction types; and how many of them there are."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from model.batches.encode import encode_rows
from model.errors import ConfigError, ResourceError
from model.settings import build
from pipelines.cluster.capacity import logical_cpus_for, preflight_workers
from pipelines.cluster.machine import cpu_count
from pipelines.cluster.worker_count import room_for, settled
from pipelines.config import ResourcesConfig, WorkerRange

RATES = {"SGD": 0.1, "Momentum": 0.05, "Adagrad": 0.1, "Adam": 0.01, "RMSProp": 0.01, "Ftrl": 0.1}


@pytest.mark.parametrize("keep", [None, [0.7, 0.8, 0.6]], ids=["whole", "dropout"])
@pytest.mark.parametrize("prediction", ["single_value", "multiple_value"])
@pytest.mark.parametrize("rule", RATES)
def test_two_and_four_workers_train_what_one_worker_trains(
    make_bundle: Any, make_table: Any, train_in_memory: Any, rule: str, prediction: str, keep: list[float] | None
) -> None:
    """Ragged rows with weights, embeddings of which few rows are looked up, clipping, accumulation, twenty steps."""
    bundle = make_bundle(
        "classification", prediction, "lstm", dtype="float64", weight="w", dropout_keep_probabilities=keep
    )
    rows = encode_rows(make_table("classification", prediction, rows=23), bundle.columns, bundle.label)
    settings = {
        "steps": 20,
        "batch_sequences": 3,
        "accumulate_batches": 2,
        "evaluate_every_steps": 1,
        "optimizer": rule,
        "learning_rate": RATES[rule],
        "momentum": 0.9 if rule == "Momentum" else None,
        "gradient_clipping_norm": 0.05,
    }
    alone, *others = (train_in_memory(bundle, rows, world=world, **settings) for world in (1, 2, 4))
    assert alone.last.step == 20
    for together in others:
        assert together.losses == pytest.approx(alone.losses, rel=1e-10)
        for name, weight in alone.last.bundle.tensors.items():
            difference = (together.last.bundle.tensors[name] - weight).abs().max()
            assert difference <= 1e-12 * weight.abs().max(), name
            assert not (weight == bundle.tensors[name]).all(), name


# How many there are -------------------------------------------------------------------------------------------------


def resources(**settings: Any) -> ResourcesConfig:
    return build(ResourcesConfig, settings, where="resources")


def room(workers: Any, cpus: int, address: str | None) -> int:
    return room_for(resources(workers=workers, cpus_per_worker=cpus, address=address))


def test_workers_are_a_number_or_auto_or_a_range() -> None:
    assert resources(workers=3).workers == 3
    assert resources(workers="auto").workers == "auto"
    elastic = resources(workers={"min": 1, "max": 4}).workers
    assert str(elastic) == "1 to 4"
    with pytest.raises(ConfigError, match="max must be at least min, but is 1, and min is 2"):
        resources(workers={"min": 2, "max": 1})
    for wrong in (0, "many", {"min": 1}):
        with pytest.raises(ConfigError, match=r"resources: workers"):
            resources(workers=wrong)


def test_a_private_ray_has_cpus_for_all_workers_and_a_joined_one_for_the_fewest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    elastic = resources(workers={"min": 2, "max": 5}).workers
    assert (room(elastic, 1, None), room(elastic, 1, "head:6379")) == (5, 2)
    assert (room(elastic, 3, None), room(elastic, 3, "head:6379")) == (15, 6)
    assert (room("auto", 1, None), room("auto", 1, "head:6379")) == (cpu_count(), 1)
    assert (room("auto", 10**6, None), room("auto", 4, "head:6379")) == (10**6, 4)
    assert (room(2, 3, None), room(2, 3, "head:6379")) == (6, 6)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert (room("auto", 1, None), room(elastic, 1, None), room(3, 1, None)) == (1, 2, 3)


@pytest.mark.parametrize("cpus_each", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [1, 3, "auto", {"min": 2, "max": 3}])
def test_a_private_ray_is_never_too_small_for_its_own_run(
    monkeypatch: pytest.MonkeyPatch, workers: Any, cpus_each: int
) -> None:
    """What the command starts Ray with is what the run then finds enough."""
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    wanted = resources(workers=workers, cpus_per_worker=cpus_each)
    cpus = logical_cpus_for(room_for(wanted))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(cpus)}}])
    fewest, most = settled(wanted.workers, cpus_each, False)
    preflight_workers(fewest, cpus_each, 0)
    assert cpus >= most * cpus_each + 1
    with pytest.raises(ResourceError):
        preflight_workers(most + 2, cpus_each, 0)


@pytest.mark.usefixtures("local_ray")
def test_auto_leaves_ray_data_its_cpus() -> None:
    assert settled("auto", 1, False) == (4, 4)  # the session's Ray has six
    assert settled("auto", 2, False) == (2, 2)
    assert settled(3, 1, False) == (3, 3)
    assert settled(WorkerRange(min=1, max=9), 1, False) == (1, 9)
    with pytest.raises(ResourceError) as raised:
        settled("auto", 5, False)
    assert str(raised.value) == (
        "resources.workers auto needs 5 CPUs for a worker on one node and 2 beside them, but the Ray cluster has 6; "
        "lower resources.cpus_per_worker, or use larger nodes"
    )
