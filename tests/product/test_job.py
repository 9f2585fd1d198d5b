"""The README's cluster path on a real local head: a job with a token, from a fresh directory, whose bundle is read."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from model.bundle.bundle import load_bundle
from model.bundle.run_directory import resolve_bundle

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Head:
    """A Ray head with its job server; `environment` holds the token."""

    address: str
    environment: dict[str, str]

    def submit(self, directory: Path, *command: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = self.environment if token is None else {**self.environment, "RAY_AUTH_TOKEN": token}
        words = [RAY, "job", "submit", "--address", self.address, "--working-dir", ".", "--", *command]
        return subprocess.run(
            words, cwd=directory, env=environment, capture_output=True, text=True, timeout=240, check=False
        )


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head --block` of our own, on ports of its own; ended by its process id."""
    port, dashboard, client, agent = free_ports(4)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**clean, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": ""}
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports += [f"--dashboard-agent-listen-port={agent}"]  # another Ray of this machine has the usual one
    temporary = Path("/tmp") / f"ray-{secrets.token_hex(4)}"  # sockets below a long path would not bind
    command = [RAY, "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={temporary}", *ports]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True, cwd=log.parent
        )
    try:
        wait_for(dashboard, process, log)
        yield Head(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"the job server must listen on port {port} within 90 s\n{log.read_text()}")


ARENAS = """
import os
from pathlib import Path

from model.training.trainer import Trainer

step_over = Trainer.step_over


def telling(self, parts, number):
    Path({where!r}).write_text(os.environ["MALLOC_ARENA_MAX"])
    return step_over(self, parts, number)


Trainer.step_over = telling
"""


@pytest.fixture
def checkout(tmp_path: Path, make_table: Callable[..., pa.Table]) -> Path:
    """A fresh directory with the packages, a run.yaml and, elsewhere, data."""
    directory = tmp_path / "checkout"
    for package in ("model", "pipelines", "tune", "serve"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    pq.write_table(make_table(rows=30), tmp_path / "data.parquet")
    run = {
        "name": "job",
        "output": str(tmp_path / "runs"),
        "data": {"train": str(tmp_path / "data.parquet"), "validation_fraction": 0},
        "model": {
            "problem_type": "classification",
            "prediction_type": "multiple_value",
            "label": "y",
            "num_units": [4],
            "columns": {"sequence": [{"type": "numeric", "name": "x"}]},
        },
        "train": {"steps": 3, "batch_sequences": 8},
        "plugins": ["arenas"],
    }
    (directory / "arenas.py").write_text(ARENAS.format(where=str(tmp_path / "arenas")))
    (directory / "run.yaml").write_text(yaml.safe_dump(run))
    return directory


def test_a_job_with_the_token_trains_and_leaves_a_bundle(head: Head, checkout: Path) -> None:
    refused = head.submit(checkout, "python", "-m", "pipelines", "--help", token="0" * 64)
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "auth" in (refused.stdout + refused.stderr).lower()
    result = head.submit(checkout, sys.executable, "-m", "pipelines", "train", "run.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    bundle = load_bundle(resolve_bundle(checkout.parent / "runs" / "job"))
    assert bundle.metrics["step"] == 3
    assert (checkout.parent / "arenas").read_text() == "1"  # of the worker's memory, wherever the cluster came from
