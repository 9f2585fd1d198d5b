"""Ray Train's trainer, bounded where Ray's own would wait without end.

Ray's elastic training waits for its fewest workers for ever, in a loop that neither rests nor hears Ctrl-C, and counts
every node that ever died against one limit; it also takes the last CPU for a worker, and Ray Data then waits for ever.
Knows no data and no model.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train.torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import state
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from pipelines.config import ResourcesConfig
from pipelines.supervision.watchdog import STARTS, NoRoomInTimeError

LEAST_SPARE_CPUS = 1  # for Ray Data's tasks
REST_SECONDS = 0.2
ABORT_SECONDS = 15.0  # what Ray Train takes at most to end its workers, unless it waits for nodes and does not hear


def trainer_of(
    train_loop: Callable[[dict[str, Any]], None],
    given: dict[str, Any],
    resources: ResourcesConfig,
    workers: int | tuple[int, int],
    *,
    gpu: bool,
    **run: Any,
) -> BoundedTorchTrainer:
    """The trainer of so many workers (or of the fewest and the most); each gets `given`, its HeartbeatSpec as `watch`.

    `run` is what ray.train.RunConfig gets beside the failures it allows.
    """
    return BoundedTorchTrainer(
        train_loop,
        start_seconds=resources.start_timeout_seconds,
        train_loop_config=given,
        torch_config=ray.train.torch.TorchConfig(timeout_s=given["watch"].collective_seconds),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": 1 if gpu else 0},
        ),
        run_config=ray.train.RunConfig(
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures), **run
        ),
    )


class StartLimit(ControllerCallback):  # type: ignore[misc]
    """Ends a run whose workers have not come within `seconds`, or have died at their start `STARTS` times in a row.

    Time and starts count anew each time that training has begun. Lives in Ray Train's controller.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: float | None = None
        self._failed = 0

    def after_controller_start(self, train_run_context: Any) -> None:
        """The clock runs from here."""
        self._since = time.monotonic()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Judges between two steps of Ray Train's loop; what is raised here ends the run."""
        if not isinstance(current_state, WAITING):
            self._since, self._failed = None, 0
            return
        self._since = self._since or time.monotonic()
        if current_state is previous_state:  # it has found too little room, and would look again at once
            time.sleep(REST_SECONDS)
        elif isinstance(current_state, state.ReschedulingState):
            self._count(current_state.training_failed_error.controller_failure)
        if time.monotonic() - self._since >= self.seconds:
            raise NoRoomInTimeError(f"no workers after {self.seconds:g} s")

    def _count(self, failure: BaseException) -> None:
        self._failed += isinstance(failure, WorkerGroupStartupFailedError)
        if self._failed == STARTS:
            raise RuntimeError(f"the workers died at each of {STARTS} starts in a row: {failure}") from failure


WAITING = (
    state.InitializingState,
    state.SchedulingState,
    state.ReschedulingState,
    state.RestartingState,
    state.ResizingState,
)


class SparingPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Elastic scaling that leaves Ray Data a CPU."""

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        cpus = ray.cluster_resources().get("CPU", 0.0) - LEAST_SPARE_CPUS
        each = self.scaling_config._resources_per_worker_not_none["CPU"]
        return int(min(super()._count_possible_workers(reserved_resources), cpus // each))


class BoundedTorchTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """Ray Train's TorchTrainer whose workers must come within `start_seconds`, and which Ctrl-C always ends."""

    def __init__(self, *arguments: Any, start_seconds: float, run_config: ray.train.RunConfig, **named: Any) -> None:
        run_config.callbacks = [*(run_config.callbacks or []), StartLimit(start_seconds)]
        run_config.failure_config.controller_failure_limit = -1  # the callback's to say: Ray's counts over days
        super().__init__(*arguments, run_config=run_config, **named)

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            named["scaling_policy"] = SparingPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**named)

    def _register_sigint_handler(self, controller: Any) -> None:
        def stop(_signal: int, _frame: Any) -> None:
            try:
                ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
            except ray.exceptions.GetTimeoutError:
                ray.kill(controller)  # its workers end with it
            except ray.exceptions.RayActorError:
                pass  # it has ended, as it should
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, stop)
