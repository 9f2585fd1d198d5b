"""Names the worker that the others wait for, and ends it so that training goes on.

A worker that hangs (a stopped process, a frozen node, a read that never returns) says nothing, and the others stand in
the sum of their gradients or in a report, where nothing tells them whom they wait for. So all of them say now and then
how far they are (`pipelines.supervision.heartbeat`), and the process that started the run listens: `missing` judges,
`kill` ends. Knows Ray, and no data and no model.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from model.errors import ResourceError, TrainingError
from pipelines.cluster.capacity import amounts
from pipelines.config import ResourcesConfig
from pipelines.supervision.driver_channel import DriverChannel, Held
from pipelines.supervision.heartbeat import BEATS, Beat, HeartbeatSpec, Process, beat_seconds

STARTS = 4  # how often the workers' start is tried within the time there is for it, and how often they may die at it
BEATS_UNTIL_SILENT = 5  # so many beats missed, and the worker counts as silent
KILL_SECONDS = 20.0  # a process is started on the worker's node: two seconds are usual
WAIT_TOLD_SECONDS = 60.0
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
ELASTIC_START_SECONDS = 30.0  # for Ray Train may not know yet that a node has gone, and then tries with too many


# Judging ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A beat and when it came."""

    beat: Beat
    at: float


@dataclass(frozen=True)
class Hang:
    """Workers that the others have waited for too long. `late` maps their ranks to processes, where these are known."""

    group: str
    late: Mapping[int, Process | None]
    message: str


def missing(heard: Mapping[int, Heard], now: float, timeout_seconds: float) -> Hang | None:
    """Who has not come to a meeting in which others have waited for `timeout_seconds`; None where all is well.

    `heard` maps ranks to their latest words, all of one group. A worker may fall silent in the very meeting in which
    the others wait for it, so silence counts as well as the number of sync_points. Where all have come and all speak,
    they wait for no worker but for a network or a file system, and the meeting's own timeout ends it.
    """
    silent_after = BEATS_UNTIL_SILENT * beat_seconds(timeout_seconds)
    speaking = {rank: each for rank, each in heard.items() if now - each.at <= silent_after}
    waiting = {
        rank: each.beat.waiting_seconds + now - each.at
        for rank, each in speaking.items()
        if each.beat.waiting_seconds is not None
    }
    if not waiting or max(waiting.values()) < timeout_seconds:
        return None
    longest = max(waiting, key=lambda rank: waiting[rank])
    beat = heard[longest].beat
    late = [
        rank for rank in range(beat.world) if rank not in speaking or speaking[rank].beat.sync_points < beat.sync_points
    ]
    if not late:
        return None
    told = " and ".join(told_of(rank, heard.get(rank), now, silent_after) for rank in late)
    message = (
        f"all workers must meet in {beat.doing} within {timeout_seconds:g} s, but rank {longest} waits there for "
        f"{told}: look at what keeps it, or raise resources.collective_timeout_seconds"
    )
    return Hang(beat.group, {rank: heard[rank].beat.process if rank in heard else None for rank in late}, message)


def told_of(rank: int, heard: Heard | None, now: float, silent_after: float) -> str:
    """A late worker in words: who it is, where it is, and whether it still speaks."""
    if heard is None:
        return f"rank {rank}, which was never heard of"
    beat, seconds = heard.beat, now - heard.at
    where = f"in {beat.doing}" + (f" at {beat.place}" if beat.place else "")
    speaks = f"is {where}" if seconds <= silent_after else f"has been silent for {seconds:.0f} s, since it was {where}"
    return f"rank {rank} ({beat.process}), which {speaks}"


# Listening ----------------------------------------------------------------------------------------------------------


def latest_start(kept: Held) -> dict[int, Heard]:
    """By rank what is heard of the latest start of workers: late words of replaced ones do not count."""
    beats = [Heard(beat, at) for beat, at in kept.values()]
    groups = list(dict.fromkeys(heard.beat.group for heard in beats))  # in the order in which they were first heard
    return {heard.beat.rank: heard for heard in beats if heard.beat.group == groups[-1]}


@dataclass
class Watchdog:
    """The starter's end. `hang` is the latest one found, `group` the latest start of workers that was heard of."""

    watch: HeartbeatSpec
    resources: ResourcesConfig
    workers: str
    tell: Callable[[str], None]
    hang: Hang | None = None
    group: str | None = None
    restarts: int = 0
    _began: float = field(default_factory=time.monotonic)
    _waits: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Judges once; a new hang is told, and its workers are killed, so that Ray Train starts all of them again."""
        kept, now = self.watch.channel.look(BEATS)
        heard = latest_start(kept)
        latest = max(heard.values(), key=lambda each: each.at, default=None)
        self._hear(None if latest is None else latest.beat)
        self._tell_of_silence(latest is None, time.monotonic() - self._began if latest is None else now - latest.at)
        found = missing(heard, now, self.watch.timeout_seconds)
        if found is None or (self.hang is not None and found.group == self.hang.group):
            return
        self.hang = found
        lost = [f"rank {rank}" for rank, process in found.late.items() if process is None or not kill(process)]
        ended = f"{' and '.join(lost)} could not be reached" if lost else "killed"
        self.tell(f"{found.message}; {ended}")

    def _hear(self, beat: Beat | None) -> None:
        """Tells that workers have been started again: what came between is Ray's to tell, and it does so at length."""
        if beat is not None and beat.group != self.group:
            if self.group is not None:
                self.restarts += 1
                workers = in_words(beat.world, beat.world)
                self.tell(f"restart {self.restarts}: training goes on with {workers} from its latest checkpoint")
            self.group = beat.group

    def _tell_of_silence(self, at_start: bool, seconds: float) -> None:
        """Says once a minute that there is no worker yet, or none any more: nodes take minutes."""
        import ray

        if seconds < (self._waits + 1) * WAIT_TOLD_SECONDS:
            self._waits = min(self._waits, int(seconds // WAIT_TOLD_SECONDS))
            return
        self._waits += 1
        what = f"waiting for {self.workers} to start:" if at_start else "nothing is heard of the workers any more:"
        self.tell(
            f"{what} {seconds:.0f} s of at most {self.resources.start_timeout_seconds:g}; the Ray cluster has "
            f"{amounts(ray.cluster_resources())}"
        )

    def follow(self) -> None:
        """Looks as often as workers speak, until the run has ended."""
        while not self._done.wait(beat_seconds(self.watch.timeout_seconds)):
            self.look()

    def close(self) -> None:
        """Stops looking."""
        self._done.set()

    def explain(self, error: BaseException) -> None:
        """What ended a run for good, where it is known better than Ray Train tells it: TrainingError, ResourceError."""
        import ray

        if isinstance(getattr(error, "controller_failure", None), NoRoomInTimeError):
            raise ResourceError(
                f"there must be room for {self.workers} in the Ray cluster within "
                f"{self.resources.start_timeout_seconds:g} s, but there was none in its "
                f"{amounts(ray.cluster_resources())}: look at what else runs there and at its autoscaler (ray status), "
                "or raise resources.start_timeout_seconds; what was trained is kept, and --resume goes on"
            ) from error
        if self.hang is not None and self.hang.group == self.group:
            raise TrainingError(self.hang.message) from error


def kill(process: Process) -> bool:
    """SIGKILL by a task on the process's node, as nothing else reaches a stopped one; False where the node is lost."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=process.node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(_kill_here).options(scheduling_strategy=there).remote(process)
    try:
        ray.get(task, timeout=KILL_SECONDS)
    except ray.exceptions.RayError:
        return False
    return True


def _kill_here(process: Process) -> None:
    from pipelines.cluster.private_ray import ray_psutil

    psutil = ray_psutil()
    if psutil.pid_exists(process.pid) and psutil.Process(process.pid).create_time() == process.started:
        os.kill(process.pid, signal.SIGKILL)


def in_words(fewest: int, most: int) -> str:
    """A number of workers, or a range of it."""
    if fewest != most:
        return f"{fewest} to {most} workers"
    return f"{most} worker{'' if most == 1 else 's'}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def watching(
    channel: DriverChannel, resources: ResourcesConfig, workers: tuple[int, int], tell: Callable[[str], None] = _say
) -> Iterator[Watchdog]:
    """A watchdog that follows, in a thread, the workers that are given its `watch`, until the block ends.

    `workers` is how many there are, at least and at most. Where these differ, a start is soon tried with fewer.
    """
    watchdog = Watchdog(
        HeartbeatSpec(channel, resources.collective_timeout_seconds), resources, in_words(*workers), tell
    )
    thread = threading.Thread(target=watchdog.follow, name="watchdog", daemon=True)
    thread.start()
    seconds = resources.start_timeout_seconds / STARTS
    try:
        with start_timeout(seconds if workers[0] == workers[1] else min(seconds, ELASTIC_START_SECONDS)):
            yield watchdog
    finally:
        watchdog.close()
        thread.join()


@contextmanager
def start_timeout(seconds: float) -> Iterator[None]:
    """How long Ray Train waits at a time for room, unless the user's environment says so."""
    if START_TIMEOUT in os.environ:
        yield
        return
    os.environ[START_TIMEOUT] = f"{seconds:g}"
    try:
        yield
    finally:
        del os.environ[START_TIMEOUT]


class NoRoomInTimeError(Exception):
    """Workers have not come in time. Ray Train's own error would make it try again."""
