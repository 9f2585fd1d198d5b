"""What docs/kuberay promises, on a real Ray: a read-only root, a token, probes that answer, the job and the service."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from model.bundle.bundle import Bundle, load_bundle, save_bundle
from model.bundle.run_directory import resolve_bundle

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "docs" / "kuberay"
RAY = str(Path(sys.executable).parent / "ray")
SERVE = str(Path(sys.executable).parent / "serve")
WAIT_SECONDS = 600  # on a very busy machine

# As a pod with readOnlyRootFilesystem: nothing can be written but /tmp, which is $1, and what the kernel gives.
READ_ONLY = """
    set -e
    mount --rbind / /mnt
    mount -o remount,ro,bind /mnt
    awk '$5 ~ "^/mnt/" {print $5}' /proc/self/mountinfo | while read -r place; do
        case $place in
            /mnt/dev*|/mnt/proc*|/mnt/sys*) ;;
            *) mount -o remount,ro,bind "$place" 2>/dev/null || true ;;
        esac
    done
    mount --bind "$1" /mnt/tmp
    shift
    exec chroot /mnt "$@"
"""


def in_read_only_root(temporary: Path) -> list[str]:
    return ["unshare", "--map-root-user", "--mount", "bash", "-c", textwrap.dedent(READ_ONLY), "_", str(temporary)]


@dataclass(frozen=True)
class Head:
    """A head as rayservice.yaml starts it. `temporary` is its /tmp; what it calls /tmp/x lies there."""

    temporary: Path
    address: str
    health: str
    serving: int
    token: str

    def ray(self, *words: str, program: str = RAY) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *words],
            env={**clean(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token},
            cwd=self.temporary,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )

    def serve_status(self) -> str:
        return self.ray("status", "-a", self.address, program=SERVE).stdout


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def manifest(name: str, kind: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((MANIFESTS / name).read_text())
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start` with the manifest's environment, below a root that is read-only; ended by its process id."""
    temporary = Path("/tmp") / f"ro-{secrets.token_hex(4)}"
    temporary.mkdir()
    touch = [*in_read_only_root(temporary), "touch", str(ROOT / "written")]
    probe = subprocess.run(touch, capture_output=True, check=False)
    if b"Read-only" not in probe.stderr:
        shutil.rmtree(temporary)
        pytest.skip("this system gives users no mount namespaces of their own")
    port, dashboard, client, agent, serving, metrics, stats = free_ports(7)
    service = manifest("rayservice.yaml", "RayService")
    template = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    told = {each["name"]: each["value"] for each in template["spec"]["containers"][0]["env"]}
    token = secrets.token_hex(32)
    environment = clean() | image_environment() | told
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PYTHONPATH": str(ROOT)}
    environment |= {"RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics), "RAY_SERVE_HAPROXY_STATS_PORT": str(stats)}
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports += [f"--dashboard-agent-listen-port={agent}"]
    with (temporary / "head.log").open("w") as stream:
        process = subprocess.Popen(
            [*in_read_only_root(temporary), RAY, "start", "--head", "--block", "--num-cpus=6", *ports],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    started = Head(temporary, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{agent}", serving, token)
    try:
        until(lambda: answers(f"{started.address}/api/version", 401), (temporary / "head.log").read_text)
        yield started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_SECONDS)
        shutil.rmtree(temporary, ignore_errors=True)


def image_environment() -> dict[str, str]:
    """The Dockerfile's ENV."""
    text = (MANIFESTS / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    return dict(word.split("=", 1) for word in line.split())


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def until(holds: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def answers(url: str, status: int) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == status
    except httpx.HTTPError:
        return False


def test_the_probes_answer_without_the_token(head: Head) -> None:
    template = manifest("rayservice.yaml", "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    container = template["spec"]["containers"][0]
    for probe in (container["livenessProbe"], container["readinessProbe"]):
        path = probe["httpGet"]["path"]
        until(partial(answers, f"{head.health}{path}", 200), (head.temporary / "head.log").read_text)
    assert answers(f"{head.address}/api/jobs/", 401)


def test_the_job_trains_below_a_read_only_root(head: Head, make_table: Callable[..., pa.Table]) -> None:
    pq.write_table(make_table(rows=30), head.temporary / "data.parquet")
    run = yaml.safe_load(manifest("rayjob.yaml", "ConfigMap")["data"]["run.yaml"])
    run |= {"output": "/tmp/runs", "data": {"train": "/tmp/data.parquet", "validation_fraction": 0}}
    run["model"] |= {"label": "y", "num_units": [4]}
    run["model"]["columns"]["sequence"][0]["name"] = "x"
    run["train"] = {"steps": 2, "batch_sequences": 8}
    run["resources"] = {"workers": 2, "gpu": False}
    (head.temporary / "run.yaml").write_text(yaml.safe_dump(run))
    entrypoint = manifest("rayjob.yaml", "RayJob")["spec"]["entrypoint"].split()
    assert entrypoint[0] == "python"
    entrypoint = [sys.executable, *entrypoint[1:-1], "/tmp/run.yaml"]
    done = head.ray("job", "submit", "--address", head.address, "--", *entrypoint)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_bundle(resolve_bundle(head.temporary / "runs" / run["name"])).metrics["step"] == 2


def test_the_service_answers_below_a_read_only_root(head: Head, make_bundle: Callable[..., Bundle]) -> None:
    save_bundle(head.temporary / "bundle", make_bundle())
    service = manifest("rayservice.yaml", "RayService")["spec"]
    wanted = yaml.safe_load(service["serveConfigV2"])
    wanted["http_options"]["port"] = head.serving
    arguments = wanted["applications"][0]["args"]
    arguments["bundle"] = "/tmp/bundle"
    arguments["serve"] |= {"num_cpus": 1, "autoscaling": {"min_replicas": 1, "max_replicas": 1}}
    (head.temporary / "serve.yaml").write_text(yaml.safe_dump(wanted))
    deployed = head.ray("deploy", "--address", head.address, "serve.yaml", program=SERVE)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    (worker,) = service["rayClusterConfig"]["workerGroupSpecs"]
    ready = worker["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
    url = f"http://127.0.0.1:{head.serving}"
    for path in (ready, "/readyz"):
        until(partial(answers, f"{url}{path}", 200), head.serve_status)
    features = {"x": [1.0], "vector": [[0.0, 1.0, 2.0]], "kind": ["view"], "tags": [["new"]]}
    body = {"sequences": [{"features": features | {"age": 30.0, "country": "at"}, "state": None}]}
    answer = httpx.post(f"{url}/v1/predict", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()["predictions"][0]["state"]) >= {"rnn_cell_state_0"}
