"""A node that dies and a worker that hangs, on a real cluster of two nodes: the run ends as if neither had happened."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from model.batches.plan import DataIndex
from model.bundle.bundle import load_bundle
from model.scoring.scorer import Scorer
from pipelines.ingest.fitted_data import load_fitted

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 30, 6
PATIENCE_SECONDS = 900  # on a machine with forty times the load it has; a run takes 25

# Nodes of three CPUs hold one worker of two CPUs: a run's two workers are on different nodes, Ray Data has the rest.
NODES = """
    import sys
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 3, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": True, "dashboard_port": 0})
    second = cluster.add_node(**node)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for command in map(str.strip, sys.stdin):
        if command == "kill":
            cluster.remove_node(second, allow_graceful=False)
        else:
            second = cluster.add_node(**node)
        print(command, flush=True)
    cluster.shutdown()
"""


class Nodes:
    """The cluster, in a process of its own with a directory of its own."""

    def __init__(self) -> None:
        self.temporary = Path("/tmp") / f"ray-{uuid.uuid4().hex[:8]}"  # sockets below a long path would not bind
        self.temporary.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {
            **kept,
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": str(self.temporary),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "PYTHONPATH": str(ROOT),
        }
        self.log = self.temporary / "nodes.log"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(NODES)],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        self.address = self._answer()

    def order(self, command: str) -> None:
        """Has it done before it returns."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self._answer() == command

    @contextmanager
    def one_less(self) -> Iterator[None]:
        """The second node is killed, and another comes when the block ends."""
        self.order("kill")
        try:
            yield
        finally:
            self.order("add")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().strip()
        assert answer, self.log.read_text()
        return answer

    def close(self) -> None:
        try:
            with self.process:  # closes its input, which ends it
                pass
            assert self.process.returncode == 0, self.log.read_text()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    yield started
    started.close()


@pytest.fixture(scope="module")
def run_yaml(small_run: Callable[..., Path]) -> Path:
    """A run of two workers; 24 rows train, so that an epoch is 3 steps, and take seconds: a node dies meanwhile."""
    return small_run(
        [400] * 32,
        ["x"],
        groups=4,
        model={"cell_type": "gru", "num_units": [16, 16]},
        train={"steps": STEPS, "evaluate_every_steps": EVERY, "batch_sequences": 8},
        resources={"workers": 2, "cpus_per_worker": 2},
    )


@pytest.fixture(scope="module")
def train(start: Callable[..., Any], nodes: Nodes, run_yaml: Path) -> Callable[..., Any]:
    """train(name, *words): `dynamic-rnn train` that has joined the cluster."""

    def train(name: str, *words: str) -> Any:
        return start(
            run_yaml,
            name,
            f"resources.address={nodes.address}",
            *words,
            environment=nodes.environment,
            cwd=run_yaml.parent,
            patience_seconds=PATIENCE_SECONDS,
        )

    return train


def train_workers(nodes: Nodes) -> list[psutil.Process]:
    """The cluster's processes that train."""
    under = psutil.Process(nodes.process.pid).children(recursive=True)
    return sorted((each for each in under if "RayTrainWorker" in each.name()), key=lambda each: each.pid)


@pytest.fixture(scope="module")
def unharmed(nodes: Nodes, train: Callable[..., Any]) -> str:
    """The fingerprint of the run that nothing happens to; its workers were on both nodes."""
    training = train("unharmed")
    training.wait_for_step(EVERY)
    assert len({worker.ppid() for worker in train_workers(nodes)}) == 2
    assert training.exit_code() == 0, training.told
    return str(training.fingerprint())


def check_as_unharmed(training: Any, unharmed: str) -> None:
    assert training.exit_code() == 0, training.told
    assert training.steps() == list(range(EVERY, STEPS + 1, EVERY))
    assert training.fingerprint() == unharmed


# A node less, a node more: first, for Ray looks for nodes that have come back only now and then -----------------------

# Training waits before a batch until the test lets it on; what each process has computed is written down.
PACE = """
import json
import os
import time
from pathlib import Path

from model.training.trainer import Trainer

HERE = Path(__file__).parent
step_over = Trainer.step_over


def paced(self, parts, number):
    while self.position >= int((HERE / "gate").read_text() or 0):
        time.sleep(0.05)
    result = step_over(self, parts, number)
    rows = [row for part in parts if part.batch is not None for row in part.batch.rows_B.tolist()]
    with (HERE / f"computed-{os.getpid()}").open("a") as stream:
        stream.write(json.dumps([self.position, rows]) + "\\n")
    return result


Trainer.step_over = paced
"""


def open_gate(directory: Path, batches: int) -> None:
    """Lets training compute so many batches."""
    written = directory / "gate.new"
    written.write_text(str(batches))
    written.replace(directory / "gate")


def wait_for(training: Any, path: Path, text: str) -> None:
    training.wait_until(lambda: path.exists() and text in path.read_text())


@pytest.mark.soak
def test_elastic_training_goes_on_with_fewer_nodes_and_grows_back(
    nodes: Nodes, train: Callable[..., Any], run_yaml: Path, unharmed: str
) -> None:
    """Held at a checkpoint while nodes go and come, so that no batch is computed twice by right."""
    here = run_yaml.parent
    (here / "pace.py").write_text(PACE)
    open_gate(here, 2 * EVERY)
    training = train("elastic", "resources.workers={min: 1, max: 2}", "plugins=[pace]")
    known = training.directory / "train" / "checkpoint_manager_snapshot.json"
    wait_for(training, known, f"checkpoint_{2 * EVERY:08d}")
    with nodes.one_less():
        wait_for(training, training.log, "restart 1: training goes on with 1 worker from its latest checkpoint\n")
        open_gate(here, 4 * EVERY)
        wait_for(training, known, f"checkpoint_{4 * EVERY:08d}")
    wait_for(training, training.log, "restart 2: training goes on with 2 workers from its latest checkpoint\n")
    open_gate(here, STEPS)
    assert training.exit_code() == 0, training.told
    assert training.steps() == list(range(EVERY, STEPS + 1, EVERY))
    check_each_row_once_an_epoch(here, load_fitted(str(training.directory)).train)
    check_trained_alike(training.directory, here / "runs" / "unharmed")


def check_each_row_once_an_epoch(directory: Path, index: DataIndex) -> None:
    """Two processes have computed the first 12 batches, one the next 12, two others the last 6."""
    lines = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(directory.glob("computed-*"))
    ]
    assert sorted((part[0][0], part[-1][0]) for part in lines) == [(0, 11), (0, 11), (12, 23), (24, 29), (24, 29)]
    by_epoch: dict[int, list[int]] = {}
    for batch, rows in (line for part in lines for line in part):
        by_epoch.setdefault(batch // 3, []).extend(rows)
    assert len(by_epoch) == STEPS // 3
    every = sorted(row for fragment in range(len(index.fragments)) for row in index.fragment_rows(fragment))
    for rows in by_epoch.values():
        assert sorted(rows) == every


def check_trained_alike(elastic: Path, unharmed: Path) -> None:
    """Sums over other numbers of workers round otherwise, and that is all."""
    ended, expected = (load_bundle(run / "bundles" / f"step_{STEPS:08d}") for run in (elastic, unharmed))
    for name, weights in expected.tensors.items():
        assert (ended.tensors[name] - weights).norm() <= 2e-5 * max(float(weights.norm()), 1.0), name
    scored = Scorer(ended).score(pq.read_table(elastic.parents[1] / "data.parquet"))
    assert scored.errors == {}
    assert scored.predictions.num_rows == 32
    losses = [
        [json.loads(line)["train_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (elastic, unharmed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# Failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_killed_node_changes_nothing(nodes: Nodes, train: Callable[..., Any], unharmed: str) -> None:
    training = train("node-killed")
    training.wait_for_step(2 * EVERY)
    time.sleep(random.Random(7).uniform(0, 0.5))
    nodes.order("kill")
    nodes.order("add")
    check_as_unharmed(training, unharmed)
    assert RESTARTED in training.told


RESTARTED = "\nrestart 1: training goes on with 2 workers from its latest checkpoint\n"
HANG = re.compile(
    r"all workers must meet in .+ within 8 s, but rank (\d) waits there for rank (\d) \(process (\d+) on [\d.]+\), "
    r"which has been silent for \d+ s, since it was in .+: look at what keeps it, or raise "
    r"resources\.collective_timeout_seconds"
)


@pytest.mark.soak
def test_a_hanging_worker_is_named_and_killed_and_changes_nothing(
    nodes: Nodes, train: Callable[..., Any], unharmed: str
) -> None:
    training = train("worker-hung", "resources.collective_timeout_seconds=8")
    training.wait_for_step(2 * EVERY)
    stopped = train_workers(nodes)[1]
    stopped.send_signal(signal.SIGSTOP)
    check_as_unharmed(training, unharmed)
    (told,) = (line for line in training.told.splitlines() if "must meet" in line)
    named = HANG.match(told)
    assert named is not None, told
    assert {named.group(1), named.group(2)} == {"0", "1"}
    assert int(named.group(3)) == stopped.pid
    assert told.endswith("resources.collective_timeout_seconds; killed")
    assert RESTARTED in training.told


@pytest.mark.soak
def test_without_restarts_a_hang_ends_the_run_with_its_name(nodes: Nodes, train: Callable[..., Any]) -> None:
    words = ("resources.collective_timeout_seconds=5", "resources.max_failures=0")
    training = train("worker-hung-once", *words)
    training.wait_for_step(EVERY)
    stopped = train_workers(nodes)[0]
    stopped.send_signal(signal.SIGSTOP)
    assert training.exit_code() == 2, training.told
    last = training.told.splitlines()[-1]
    assert last.startswith("dynamic-rnn: all workers must meet in ")
    assert f"(process {stopped.pid} on " in last


@pytest.mark.soak
def test_a_node_that_never_comes_back_is_waited_for_as_long_as_allowed(nodes: Nodes, train: Callable[..., Any]) -> None:
    training = train("node-gone", "resources.start_timeout_seconds=30")
    training.wait_for_step(EVERY)
    with nodes.one_less():
        assert training.exit_code() == 2, training.told
    assert training.told.splitlines()[-1] == (
        "dynamic-rnn: there must be room for 2 workers in the Ray cluster within 30 s, but there was none in its 3 "
        "CPUs and 0 GPUs: look at what else runs there and at its autoscaler (ray status), or raise "
        "resources.start_timeout_seconds; what was trained is kept, and --resume goes on"
    )
    assert training.steps() != []


@pytest.mark.soak
def test_elastic_training_waits_for_its_fewest_workers_as_long_as_allowed(
    nodes: Nodes, train: Callable[..., Any]
) -> None:
    """Ray Train itself would wait for ever."""
    words = ("resources.workers={min: 2, max: 3}", "resources.start_timeout_seconds=20")
    training = train("elastic-gone", *words)
    training.wait_for_step(EVERY)
    with nodes.one_less():
        assert training.exit_code() == 2, training.told
    last = training.told.splitlines()[-1]
    told = "dynamic-rnn: there must be room for 2 to 3 workers in the Ray cluster within 20 s, but there was none in "
    assert last.startswith(told)


@pytest.mark.soak
def test_ctrl_c_ends_elastic_training_that_waits_for_nodes(nodes: Nodes, train: Callable[..., Any]) -> None:
    training = train("elastic-interrupted", "resources.workers={min: 2, max: 3}")
    training.wait_for_step(EVERY)
    with nodes.one_less():
        time.sleep(40)  # one start is tried with workers that are gone; then it waits for nodes
        training.process.send_signal(signal.SIGINT)
        assert training.process.wait(60) == 130, training.told
    assert "stopped: the best bundle so far is " in training.told
