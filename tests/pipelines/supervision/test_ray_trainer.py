"""Where Ray Train would wait without end; on nodes that really go, in test_nodes.py."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray
import ray.train
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import state

from pipelines.supervision.ray_trainer import SparingPolicy, StartLimit
from pipelines.supervision.watchdog import NoRoomInTimeError

STARTING, RUNNING = state.SchedulingState(None), state.RunningState()


@pytest.mark.parametrize(
    ("reserved", "cluster", "cpus_each", "workers"),
    [
        pytest.param([4], 4, 1, 3, id="the only node's last CPU stays free"),
        pytest.param([4, 4], 8, 2, 3, id="and where workers take several"),
        pytest.param([2, 2], 16, 2, 2, id="other nodes have CPUs for Ray Data"),
        pytest.param([9, 9], 18, 1, 6, id="never more than asked for"),
        pytest.param([4], 2, 2, 0, id="a node that Ray Train does not know to be gone"),
    ],
)
def test_elastic_training_leaves_ray_data_a_cpu(
    monkeypatch: pytest.MonkeyPatch, reserved: list[int], cluster: int, cpus_each: int, workers: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cluster)})
    policy = SparingPolicy(ray.train.ScalingConfig(num_workers=(1, 6), resources_per_worker={"CPU": cpus_each}))
    nodes = {str(number): {"CPU": float(cpus)} for number, cpus in enumerate(reserved)}
    assert policy._count_possible_workers(nodes) == workers


def rescheduled(failure: Exception) -> Any:
    return state.ReschedulingState(ControllerError(failure))


def told(limit: StartLimit, *states: Any) -> None:
    previous = state.InitializingState()
    for each in states:
        limit.after_controller_state_update(previous, each)
        previous = each


def test_the_time_for_a_start_is_counted_from_the_last_step_that_was_trained() -> None:
    limit = StartLimit(0.3)
    limit.after_controller_start(None)
    for _ in range(3):
        told(limit, STARTING)
        time.sleep(0.2)
        told(limit, RUNNING)
    timed_out = rescheduled(WorkerGroupStartupTimeoutError(2))
    told(limit, timed_out, STARTING)
    with pytest.raises(NoRoomInTimeError):
        told(limit, timed_out, timed_out, timed_out)


def test_workers_that_always_die_at_their_start_are_not_started_for_ever() -> None:
    limit, died = StartLimit(900), WorkerGroupStartupFailedError("a worker died")
    for _ in range(2):
        told(limit, rescheduled(died), STARTING, rescheduled(died), STARTING, rescheduled(died), RUNNING)
    told(limit, rescheduled(died), STARTING, rescheduled(died), rescheduled(died))
    with pytest.raises(RuntimeError, match="the workers died at each of 4 starts in a row: a worker died"):
        told(limit, rescheduled(died))
