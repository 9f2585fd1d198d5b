"""Who is named when workers wait: judged on words that workers might say; real hanging workers are in test_nodes.py."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.supervision.heartbeat import Beat, Heartbeat, HeartbeatSpec, Process, beat_seconds, place_of
from pipelines.supervision.watchdog import START_TIMEOUT, Heard, in_words, missing, start_timeout

ROOT = Path(__file__).resolve().parents[3]
NOW = 1000.0
TIMEOUT_SECONDS = 200.0  # a worker speaks every 5 s, and is silent after 25


def heard(rank: int, *, sync_points: int, waiting: float | None = None, ago: float = 1.0, world: int = 2) -> Heard:
    """A word of a worker that came `ago` seconds before NOW; `waiting` seconds at NOW."""
    process = Process(f"node{rank}", f"10.0.0.{rank}", 100 + rank, 0.0)
    seconds = None if waiting is None else waiting - ago
    beat = Beat(
        "head:29500", rank, world, process, sync_points, seconds, f"step {sync_points}", "pipelines/train/loop.py:97"
    )
    return Heard(beat, NOW - ago)


def judged(*words: Heard, timeout_seconds: float = TIMEOUT_SECONDS) -> tuple[list[int], str] | None:
    """(late ranks, message), or None."""
    hang = missing({each.beat.rank: each for each in words}, NOW, timeout_seconds)
    return None if hang is None else (sorted(hang.late), hang.message)


def test_a_worker_that_has_not_come_is_named_with_its_place() -> None:
    assert judged(heard(0, sync_points=12, waiting=201), heard(1, sync_points=11)) == (
        [1],
        "all workers must meet in step 12 within 200 s, but rank 0 waits there for rank 1 (process 101 on 10.0.0.1), "
        "which is in step 11 at pipelines/train/loop.py:97: look at what keeps it, or raise "
        "resources.collective_timeout_seconds",
    )


def test_a_worker_that_fell_silent_in_the_meeting_itself_is_named() -> None:
    assert judged(heard(0, sync_points=12, waiting=201), heard(1, sync_points=12, waiting=300, ago=202)) == (
        [1],
        "all workers must meet in step 12 within 200 s, but rank 0 waits there for rank 1 (process 101 on 10.0.0.1), "
        "which has been silent for 202 s, since it was in step 12 at pipelines/train/loop.py:97: look at what keeps "
        "it, or raise resources.collective_timeout_seconds",
    )


def test_a_worker_that_was_never_heard_of_is_named() -> None:
    late = judged(heard(1, sync_points=1, waiting=201))
    assert late is not None
    assert late[0] == [0]
    assert "rank 1 waits there for rank 0, which was never heard of: look" in late[1]


def test_all_late_workers_are_named() -> None:
    late = judged(
        heard(0, sync_points=5, waiting=201, world=4),
        heard(1, sync_points=5, waiting=150, world=4),
        heard(2, sync_points=4, world=4),
        heard(3, sync_points=5, waiting=190, ago=60, world=4),
    )
    assert late is not None
    assert late[0] == [2, 3]
    assert "for rank 2 (process 102 on 10.0.0.2), which is in step 4" in late[1]
    assert "and rank 3 (process 103 on 10.0.0.3), which has been silent for 60 s" in late[1]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([heard(0, sync_points=12, waiting=199), heard(1, sync_points=11)], id="not long enough"),
        pytest.param([heard(0, sync_points=12), heard(1, sync_points=11, ago=900)], id="nobody waits"),
        pytest.param(
            [heard(0, sync_points=12, waiting=500), heard(1, sync_points=12, waiting=500)],
            id="all have come and all speak: a slow network or file system is nobody's hang",
        ),
        pytest.param(
            [heard(0, sync_points=12, waiting=500, ago=100), heard(1, sync_points=11, ago=100)],
            id="all are silent: they have ended, and others are being started",
        ),
        pytest.param([], id="no worker yet"),
    ],
)
def test_nobody_is_named_without_need(words: list[Heard]) -> None:
    assert judged(*words) is None


# --- what a worker says ----------------------------------------------------------------------------------------------


def test_a_pulse_tells_sync_points_waits_and_places_while_the_worker_is_busy() -> None:
    said: list[Beat] = []
    heartbeat = Heartbeat(Beat("group", 0, 2, Process("node", "10.0.0.1", 1, 0.0)), said.append, every_seconds=0.005)

    def until(count: int) -> Beat:
        deadline = time.monotonic() + 30
        while len(said) < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return said[-1]

    try:
        assert until(1).waiting_seconds is None
        heartbeat.begin("step 7")
        with heartbeat.sync_point():
            inside = until(len(said) + 3)
        outside = until(len(said) + 3)
    finally:
        heartbeat.close()
    assert (inside.sync_points, inside.doing) == (1, "step 7")
    assert inside.waiting_seconds is not None
    assert replace(outside, place="", sync_points=0) == replace(inside, place="", sync_points=0, waiting_seconds=None)


def test_batches_pass_unchanged_and_name_the_step_that_is_waited_for() -> None:
    told: list[str] = []

    class Listening(Heartbeat):
        def begin(self, doing: str) -> None:
            told.append(doing)

    heartbeat = Listening(Beat("group", 0, 2, Process("node", "10.0.0.1", 1, 0.0)), lambda _: None, every_seconds=60)
    heartbeat.close()

    def batches(plan: str, start: int, stop: int) -> list[str]:
        return [f"{plan} {number}" for number in range(start, stop)]

    watched = heartbeat.over(batches, "train")  # type: ignore[arg-type]
    assert list(watched("train", 3, 5)) == ["train 3", "train 4"]
    assert list(watched("validation", 0, 1)) == ["validation 0"]
    assert told == ["step 4", "step 5", "what follows step 5", "validation batch 1", "what follows validation batch 1"]


def test_the_place_of_a_thread_is_its_innermost_line_of_ours() -> None:
    ready, done = threading.Event(), threading.Event()

    def slow_batches(_plan: str, _start: int, _stop: int) -> Iterator[None]:
        ready.set()
        done.wait(30)
        yield None

    heartbeat = Heartbeat(Beat("group", 0, 2, Process("node", "10.0.0.1", 1, 0.0)), lambda _: None, every_seconds=60)
    heartbeat.close()
    thread = threading.Thread(target=lambda: list(heartbeat.over(slow_batches, "train")("train", 0, 1)))
    thread.start()
    ready.wait(30)
    assert thread.ident is not None
    file, _, line = place_of(thread.ident).rpartition(":")
    assert file == "pipelines/supervision/heartbeat.py"
    assert "in enumerate(batches(plan, start, stop)" in (ROOT / file).read_text().splitlines()[int(line) - 1]
    done.set()
    thread.join()
    assert place_of(thread.ident) == ""


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timeout_seconds", "expected"), [(600.0, 5.0), (10.0, 0.25)])
def test_workers_speak_often_within_the_time_they_may_be_waited_for(timeout_seconds: float, expected: float) -> None:
    assert beat_seconds(timeout_seconds) == expected


def test_torch_gives_up_after_the_watchdog_has_had_its_time() -> None:
    assert HeartbeatSpec(None, 600.0).collective_seconds == 660


def test_the_users_own_start_timeout_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(START_TIMEOUT, "7")
    with start_timeout(225.0):
        assert os.environ[START_TIMEOUT] == "7"
    monkeypatch.delenv(START_TIMEOUT)
    with start_timeout(225.0):
        assert os.environ[START_TIMEOUT] == "225"
    assert START_TIMEOUT not in os.environ


@pytest.mark.parametrize(
    ("workers", "words"), [((1, 1), "1 worker"), ((4, 4), "4 workers"), ((2, 8), "2 to 8 workers")]
)
def test_workers_are_counted_in_words(workers: tuple[int, int], words: str) -> None:
    assert in_words(*workers) == words
