"""Processes killed with SIGKILL: what was killed and started again ends with the bits of what never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from model.checkpoint import load_bundle
from model.runs import pointed
from model.storage import join

pytestmark = pytest.mark.slow

STEPS, EVERY = 60, 10


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory: pytest.TempPathFactory, make_table: Callable[..., pa.Table]) -> Path:
    """A run over 64 rows with dropout and two workers, slow enough to be killed midway."""
    directory = tmp_path_factory.mktemp("faults")
    pq.write_table(make_table(lengths=[200] * 64), directory / "data.parquet", row_group_size=16)
    run = {
        "output": str(directory / "runs"),
        "data": {"train": str(directory / "data.parquet"), "validation_fraction": 0.2},
        "model": {
            "problem_type": "classification",
            "prediction_type": "multiple_value",
            "label": "y",
            "cell_type": "gru_reset_before",
            "num_units": [64, 64],
            "dropout_keep_probabilities": [1.0, 0.8, 0.9],
            "columns": {"sequence": [{"type": "numeric", "name": "x"}, {"type": "numeric", "name": "vector"}]},
        },
        "train": {"steps": STEPS, "evaluate_every_steps": EVERY, "batch_sequences": 32, "optimizer": "Adam"},
        "resources": {"workers": 2},
    }
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that inherited FAULT_TEST=mark."""
    listed = psutil.process_iter(["cmdline", "environ"])
    return [process for process in listed if (process.info["environ"] or {}).get("FAULT_TEST") == mark]


class Training:
    """`dynamic-rnn train` in a process of its own; every process it starts carries a mark."""

    def __init__(self, run_yaml: Path, name: str, *words: str) -> None:
        self.directory = run_yaml.parent / "runs" / name
        self.mark = str(uuid.uuid4())
        self.log = run_yaml.parent / f"{self.mark}.log"
        command = [sys.executable, "-m", "pipelines", "train", str(run_yaml), f"name={name}", *words]
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                command, env={**os.environ, "FAULT_TEST": self.mark}, stdout=stream, stderr=stream
            )

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 180
        while not any(line["step"] >= step for line in self.metrics()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def metrics(self) -> list[dict[str, float]]:
        path = self.directory / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def workers(self) -> list[psutil.Process]:
        return [process for process in marked(self.mark) if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])]

    def wait(self) -> None:
        assert self.process.wait(240) == 0, self.log.read_text()

    def kill(self) -> None:
        """Ends the driver; returns when all that it had started has ended, too."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + 60
        while left := marked(self.mark):
            assert time.monotonic() < deadline, [process.info["cmdline"] for process in left]
            time.sleep(0.5)

    def fingerprint(self) -> str:
        latest = pointed(self.directory, "latest")
        assert latest is not None
        return load_bundle(join(self.directory, latest)).fingerprint


@pytest.fixture(scope="module")
def unharmed(run_yaml: Path) -> str:
    """The fingerprint of the run that nobody kills."""
    training = Training(run_yaml, "unharmed")
    training.wait()
    return training.fingerprint()


def check_each_step_once(training: Training) -> None:
    assert [line["step"] for line in training.metrics()] == list(range(EVERY, STEPS + 1, EVERY))


def test_a_killed_worker_changes_nothing(run_yaml: Path, unharmed: str) -> None:
    training = Training(run_yaml, "worker-killed")
    training.wait_for_step(2 * EVERY)
    workers = training.workers()
    assert len(workers) == 2
    workers[0].kill()
    training.wait()
    assert training.fingerprint() == unharmed
    check_each_step_once(training)


def test_a_killed_driver_leaves_no_process_and_its_resumed_run_is_the_same(run_yaml: Path, unharmed: str) -> None:
    training = Training(run_yaml, "driver-killed")
    training.wait_for_step(3 * EVERY)
    training.kill()
    assert training.metrics()[-1]["step"] < STEPS
    again = Training(run_yaml, "driver-killed", "--resume")
    again.wait()
    assert again.fingerprint() == unharmed
    check_each_step_once(again)


def test_one_command_line_starts_a_run_and_goes_on_with_it_after_a_kill(run_yaml: Path, unharmed: str) -> None:
    """Killed before its first checkpoint, and after its third; what has ended stays as it is."""
    began = Training(run_yaml, "retried", "--resume-if-exists")
    while not (began.directory / "run.yaml").exists():
        assert began.process.poll() is None, began.log.read_text()
        time.sleep(0.01)
    began.kill()
    killed = Training(run_yaml, "retried", "--resume-if-exists")
    killed.wait_for_step(3 * EVERY)
    killed.kill()
    assert killed.metrics()[-1]["step"] < STEPS
    for _ in range(2):
        ended = Training(run_yaml, "retried", "--resume-if-exists")
        ended.wait()
        assert ended.fingerprint() == unharmed
        check_each_step_once(ended)


@pytest.mark.parametrize("stage", ["train", "tune", "serve"])
def test_ctrl_c_ends_the_demo_in_any_stage_and_says_what_was_kept(tmp_path: Path, stage: str) -> None:
    mark, log = str(uuid.uuid4()), tmp_path / "log"
    command = [sys.executable, "-m", "pipelines", "demo", "--quick", str(tmp_path / "demo")]
    with log.open("w") as stream:
        demo = subprocess.Popen(command, env={**os.environ, "FAULT_TEST": mark}, stdout=stream, stderr=stream)
    deadline = time.monotonic() + 240
    while f". {stage}:" not in log.read_text():
        assert demo.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    time.sleep(2)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(90) == 130, log.read_text()
    told = log.read_text()
    assert f"stopped: what was made so far lies in {tmp_path / 'demo' / 'data'}" in told
    assert "Traceback" not in told
    assert marked(mark) == []


HANGS = '''
"""Stops the second of two workers for good, once, before the third step."""
import os
import signal
from pathlib import Path

import ray.train

from model.training import Trainer

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
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).resolve().parents[1]}{os.pathsep}{tmp_path}"},
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
