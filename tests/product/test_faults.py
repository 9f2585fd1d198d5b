"""Processes killed with SIGKILL: what was killed and started again ends with the bits of what never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.bundle.bundle import load_bundle
from model.bundle.run_directory import resolve_bundle
from pipelines.tracking.run_list import list_runs

pytestmark = pytest.mark.slow

STEPS, EVERY = 60, 10


@pytest.fixture(scope="module")
def run_yaml(small_run: Callable[..., Path]) -> Path:
    """A run over 64 rows and two workers, slow enough to be killed midway."""
    return small_run(
        [200] * 64,
        ["x", "vector"],
        groups=4,
        model={"cell_type": "gru_reset_before", "num_units": [64, 64]},
        train={"steps": STEPS, "evaluate_every_steps": EVERY, "batch_sequences": 32},
        resources={"workers": 2},
    )


@pytest.fixture(scope="module")
def unharmed(start: Callable[..., Any], run_yaml: Path) -> str:
    """The fingerprint of the run that nobody kills."""
    training = start(run_yaml, "unharmed")
    assert training.exit_code() == 0, training.told
    return str(training.fingerprint())


def check_as_unharmed(training: Any, unharmed: str) -> None:
    assert training.exit_code() == 0, training.told
    assert training.fingerprint() == unharmed
    assert training.steps() == list(range(EVERY, STEPS + 1, EVERY))


def test_a_killed_worker_changes_nothing(start: Callable[..., Any], run_yaml: Path, unharmed: str) -> None:
    training = start(run_yaml, "worker-killed")
    training.wait_for_step(2 * EVERY)
    workers = training.living("RayTrainWorker")
    assert len(workers) == 2
    workers[0].kill()
    check_as_unharmed(training, unharmed)


def test_a_killed_driver_leaves_no_process_and_its_resumed_run_is_the_same(
    start: Callable[..., Any], run_yaml: Path, unharmed: str
) -> None:
    training = start(run_yaml, "driver-killed")
    training.wait_for_step(3 * EVERY)
    training.kill()
    assert training.steps()[-1] < STEPS
    check_as_unharmed(start(run_yaml, "driver-killed", "--resume"), unharmed)


def test_one_command_line_starts_a_run_and_goes_on_with_it_after_a_kill(
    start: Callable[..., Any], run_yaml: Path, unharmed: str
) -> None:
    """Killed before its first checkpoint, and after its third; what has ended stays as it is."""
    began = start(run_yaml, "retried", "--resume-if-exists")
    began.wait_until((began.directory / "run.yaml").exists)
    began.kill()
    killed = start(run_yaml, "retried", "--resume-if-exists")
    killed.wait_for_step(3 * EVERY)
    killed.kill()
    assert killed.steps()[-1] < STEPS
    for _ in range(2):
        check_as_unharmed(start(run_yaml, "retried", "--resume-if-exists"), unharmed)


def test_one_command_line_starts_a_sweep_and_goes_on_with_it_after_a_kill(
    start: Callable[..., Any], run_yaml: Path
) -> None:
    """Killed in its second trial; the list of runs says so at each point, and what has ended stays as it is."""
    tuned = run_yaml.with_name("tune.yaml")
    space = {"train.learning_rate": [0.01, 0.02, 0.03]}
    tune: dict[str, Any] = {"space": space, "search": "grid", "asha": None, "steps": 20, "evaluate_every_steps": 5}
    tune["max_concurrent_trials"] = 1
    tuned.write_text(yaml.safe_dump(yaml.safe_load(run_yaml.read_text()) | {"tune": tune}))

    def sweep(name: str) -> Any:
        return start("tune", str(tuned), f"name={name}", "--resume-if-exists")

    def listed(name: str) -> tuple[str, bool]:
        (line,) = (line for line in list_runs(str(run_yaml.parent / "runs")) if line.name == name)
        return line.status, line.resumable

    killed = sweep("killed")
    killed.wait_until(lambda: "trial 001: step 10" in killed.told)
    assert listed("killed") == ("running", False)
    killed.kill()
    assert listed("killed") == ("stopped", True)
    again = sweep("killed")
    assert again.exit_code() == 0, again.told
    assert "trial 000" not in again.told.partition("trial 001 goes on")[0]
    assert listed("killed") == ("finished", False)
    whole = sweep("whole")
    assert whole.exit_code() == 0, whole.told
    best = [load_bundle(resolve_bundle(run_yaml.parent / "runs" / name)) for name in ("killed", "whole")]
    assert best[0].fingerprint == best[1].fingerprint
    ended = sweep("killed")
    assert ended.exit_code() == 0, ended.told
    assert ended.told.splitlines()[-1] == again.told.splitlines()[-1]


@pytest.mark.parametrize("stage", ["train", "tune", "serve"])
def test_ctrl_c_ends_the_demo_in_any_stage_and_says_what_was_kept(
    start: Callable[..., Any], tmp_path: Path, stage: str
) -> None:
    demo = start("demo", "--quick", str(tmp_path / "demo"))
    demo.wait_until(lambda: f". {stage}:" in demo.told)
    time.sleep(2)
    demo.process.send_signal(signal.SIGINT)
    assert demo.exit_code() == 130, demo.told
    assert f"stopped: what was made so far lies in {tmp_path / 'demo' / 'data'}" in demo.told
    assert "Traceback" not in demo.told
    assert demo.living() == []


HANGS = '''
"""Stops the second of two workers for good, once, before the third step."""
import os
import signal
from pathlib import Path

import ray.train

from model.training.trainer import Trainer

DONE = Path(__file__).with_name("stopped")
step_over = Trainer.step_over


def stopping(self, parts, number):
    if self.position == 2 and ray.train.get_context().get_world_rank() == 1 and not DONE.exists():
        DONE.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return step_over(self, parts, number)


Trainer.step_over = stopping
'''


def test_a_trials_worker_that_hangs_is_named_and_replaced(run_yaml: Path, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    tuning = {"space": {"num_units": [[4]]}, "search": "grid", "steps": 6, "evaluate_every_steps": 2}
    run = yaml.safe_load(run_yaml.read_text()) | {"name": "hung", "tune": {**tuning, "workers_per_trial": 2}}
    run["model"]["dropout_keep_probabilities"] = None
    run["train"] = {"batch_sequences": 32}
    run["resources"] = {"collective_timeout_seconds": 6}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run | {"plugins": ["hangs"]}))
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "tune", "run.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).resolve().parents[2]}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "stopped").exists()
    told = done.stdout + done.stderr
    (named,) = (line for line in told.splitlines() if "must meet" in line)
    assert named.startswith(
        "trial_000: all workers must meet in step 3 within 6 s, but rank 0 waits there for rank 1 ("
    )
    assert named.endswith("resources.collective_timeout_seconds; killed")
    assert "trial_000: restart 1: training goes on with 2 workers from its latest checkpoint" in told
    assert "trial 000: step 6, validation_loss " in told
