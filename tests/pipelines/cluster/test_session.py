"""Starting and joining Ray for real, each in a process of its own, so that the tests' process has at most one Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from model.errors import ConfigError
from pipelines.cluster import machine
from pipelines.cluster.capacity import logical_cpus_for
from pipelines.cluster.private_ray import OBJECT_STORE_LEAST_BYTES, default_object_store_bytes
from pipelines.cluster.session import ray_session, refuse_unsafe_environment

ROOT = Path(__file__).resolve().parents[3]
MIB, GIB = 2**20, 2**30
START_SECONDS = 120  # a busy machine; 6 are usual


def clean_environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment without anything said about Ray, and with a home directory nobody has written to."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_", "PYTHON"))}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), **variables}


def run(script: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # Ray Data's own settings warn about one another.
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning:ray.data.context", "-c", script],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


# --- one private Ray, asked everything -------------------------------------------------------------------------------

JOINING = """
    from pathlib import Path
    from pipelines.cluster.capacity import RAY_UP_FILE, preflight
    from pipelines.cluster.session import ray_session
    with ray_session(logical_cpus=2) as session:
        import ray
        print(session.started, ray.get(ray.remote(lambda: 6 * 7).remote()))
        node = {"resources": {"CPU": 50, "GPU": 1}, "max_workers": 2}
        RAY_UP_FILE.expanduser().write_text(str(
            {"max_workers": 2, "head_node_type": "head", "available_node_types": {
                "head": {"resources": {"CPU": 4}}, "gpu": node}}
        ))
        preflight(cpus=100, gpus=2)
        try:
            preflight(cpus=100, gpus=3)
        except ValueError as error:
            print(error)
"""

PRIVATE = """
    import json, os, subprocess, sys, time, urllib.error, urllib.request
    from pipelines.cluster.capacity import available_gpus, logical_cpus_for, preflight
    from pipelines.cluster.session import configure_ray_data, ray_session
    assert "ray" not in sys.modules
    facts = {}

    def fails(action):
        try:
            action()
        except ValueError as error:
            return f"{type(error).__name__}: {error}"

    def open_session(cpus):
        with ray_session(logical_cpus=cpus) as inner:
            return inner.started

    with ray_session(logical_cpus=logical_cpus_for(2), object_store_bytes=200 * 2**20) as session:
        import psutil, ray, ray.data
        children = psutil.Process().children(recursive=True)

        @ray.remote(num_cpus=2)
        def worker():
            import pipelines, torch
            return {
                "python_path": os.environ["PYTHONPATH"],
                "packages": list(pipelines.__path__),
                "threads": torch.get_num_threads(),
                "arenas": os.environ["MALLOC_ARENA_MAX"],
                "health_check": os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"],
            }

        facts["started"] = session.started
        facts["cpus"] = ray.cluster_resources()["CPU"]
        facts["object_store_bytes"] = ray.cluster_resources()["object_store_memory"]
        facts["worker"] = ray.get(worker.remote())
        facts["too_much"] = fails(lambda: preflight(cpus=1000, gpus=1))
        facts["enough"] = fails(lambda: preflight(cpus=4, gpus=0))
        facts["reused_started"] = open_session(1)
        facts["reused_too_small"] = fails(lambda: open_session(999))
        facts["still_running"] = ray.is_initialized()
        facts["gpus"] = available_gpus()
        facts["cuda_context"] = sys.modules["torch"].cuda.is_initialized()

        request = urllib.request.Request(f"http://{ray._private.worker.get_dashboard_url()}/api/jobs/")
        try:
            urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            facts["stranger"] = error.code

        configure_ray_data()
        rows = ray.data.range(40, override_num_blocks=8).map_batches(lambda batch: batch)
        facts["in_order"] = [row["id"] for row in rows.iter_rows()] == list(range(40))

        joining = {**os.environ, "RAY_ADDRESS": session.address}
        joined = subprocess.run([sys.executable, "-c", sys.argv[1]], env=joining, capture_output=True, text=True)
        facts["joined"] = [joined.returncode, joined.stdout, joined.stderr]
        facts["alive_after_join"] = ray.get(ray.remote(lambda: "yes").remote())
    facts["left"] = [child.name() for child in children if child.is_running()]
    facts["processes"] = len(children)
    facts["environment"] = dict(os.environ)
    facts["home"] = sorted(os.listdir(os.environ["HOME"]))
    print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """What a process found that started a private Ray, used it, was joined by another process, and ended it."""
    home = tmp_path_factory.mktemp("home")
    environment = clean_environment(home, RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE="0")
    script = f"import sys; sys.argv.append({textwrap.dedent(JOINING)!r})\n{textwrap.dedent(PRIVATE)}"
    finished = run(script, environment, cwd=home)
    assert finished.returncode == 0, finished.stderr
    return {**json.loads(finished.stdout.splitlines()[-1]), "stdout": finished.stdout, "stderr": finished.stderr}


def test_a_private_ray_offers_the_logical_cpus_and_the_store_it_was_asked_for(private):
    assert private["started"] is True
    assert private["cpus"] == max(4, machine.cpu_count())
    assert private["object_store_bytes"] == 200 * MIB


def test_workers_find_our_packages_and_compute_on_one_thread(private):
    assert private["worker"]["python_path"].split(os.pathsep)[0] == str(ROOT)
    assert private["worker"]["packages"] == [str(ROOT / "pipelines")]
    assert private["worker"]["threads"] == 1
    assert private["worker"]["arenas"] == "1"
    assert private["worker"]["health_check"] == "0.2"


def test_what_workers_inherit_is_not_left_in_our_own_environment(private):
    environment = private["environment"]
    assert environment["PYTHONPATH"] == str(ROOT)
    assert "OMP_NUM_THREADS" not in environment
    assert "MALLOC_ARENA_MAX" not in environment
    assert environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
    assert environment["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_private_ray_asks_strangers_for_a_token_that_is_nowhere_on_disk(private):
    assert private["environment"]["RAY_AUTH_MODE"] == "token"
    assert private["stranger"] == 401
    assert ".ray" not in private["home"]


def test_impossible_needs_are_refused_at_once(private):
    cpus = int(private["cpus"])
    assert private["too_much"] == (
        f"ResourceError: 1000 CPUs and 1 GPU must be in the Ray cluster, but it has {cpus} CPUs and {private['gpus']} "
        f"GPUs: lower resources.workers, or use a larger cluster"
    )
    assert private["enough"] is None


def test_a_running_ray_is_reused_and_left_running(private):
    assert private["reused_started"] is False
    assert private["still_running"] is True
    assert "999 CPUs and 0 GPUs must be in the Ray cluster" in private["reused_too_small"]


def test_counting_gpus_creates_no_cuda_context(private):
    assert private["gpus"] >= 0
    assert private["cuda_context"] is False


def test_ray_data_keeps_the_order_and_says_nothing(private):
    assert private["in_order"] is True
    assert private["stderr"] == ""
    assert len(private["stdout"].splitlines()) == 1


def test_a_joined_cluster_is_left_running(private):
    exit_code, output, _ = private["joined"]
    assert exit_code == 0, private["joined"]
    assert output.splitlines()[0] == "False 42"
    assert private["alive_after_join"] == "yes"


def test_needs_within_an_autoscalers_reach_are_waited_for_and_others_refused(private):
    _, output, errors = private["joined"]
    assert errors.endswith("must be in the Ray cluster; it has 4 CPUs and 0 GPUs: waiting for its autoscaler\n")
    assert output.splitlines()[1] == (
        "100 CPUs and 3 GPUs must be in the Ray cluster, but it has 4 CPUs and 0 GPUs and grows to 104 CPUs and 2 GPUs "
        "at most: lower resources.workers, or raise max_workers in cluster.yaml and run ray up again"
    )


def test_no_process_is_left_when_the_session_ends(private):
    assert private["processes"] > 5
    assert private["left"] == []


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

WAITING = """
    import time
    from pipelines.cluster import ray_session
    print("starting", flush=True)
    with ray_session(logical_cpus=1):
        import ray
        ray.get(ray.remote(lambda: 1).remote())
        print("running", flush=True)
        time.sleep(600)
"""


def descendants(process: subprocess.Popen[str], at_least: int) -> list[psutil.Process]:
    deadline = time.monotonic() + START_SECONDS
    while len(found := psutil.Process(process.pid).children(recursive=True)) < at_least:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("moment", ["while Ray starts", "while work runs"])
def test_ctrl_c_leaves_no_process(moment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAITING)],
        env=clean_environment(tmp_path, RAY_AUTH_MODE="disabled"),
        cwd=tmp_path,
        start_new_session=True,  # a terminal sends Ctrl-C to all of the program's processes
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        if moment == "while work runs":
            assert process.stdout.readline() == "running\n"
        started = descendants(process, at_least=2)

        os.killpg(process.pid, signal.SIGINT)

        assert process.wait(timeout=60) == -signal.SIGINT
    assert [child for child in started if child.is_running()] == []


# --- clusters that cannot be joined ----------------------------------------------------------------------------------


REFUSED = """
    import sys
    from pipelines.cluster import ray_session
    try:
        with ray_session(logical_cpus=1, address=sys.argv[1] or None):
            pass
    except ValueError as error:
        print(f"{type(error).__name__}: {error}", "ray" in sys.modules)
"""


def refusal(tmp_path: Path, address: str = "", **variables: str) -> str:
    """The message, which comes before Ray is even imported."""
    environment = clean_environment(tmp_path, RAY_TMPDIR=str(tmp_path), **variables)
    finished = run(f"import sys; sys.argv.append({address!r})\n{textwrap.dedent(REFUSED)}", environment, tmp_path)
    assert finished.stderr == ""
    message, _, ray_was_imported = finished.stdout.strip().rpartition(" ")
    assert ray_was_imported == "False"
    return message


@pytest.fixture
def dead_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_dead_address_is_refused_in_one_line(tmp_path, dead_address):
    assert refusal(tmp_path, dead_address) == (
        f"ResourceError: a Ray cluster must answer at {dead_address}, but nothing does: check that it is up and that "
        "its port is open to this machine, or unset RAY_ADDRESS to run on this machine"
    )


def test_the_environments_address_is_used(tmp_path, dead_address):
    assert f"must answer at {dead_address}, but nothing does" in refusal(tmp_path, RAY_ADDRESS=dead_address)


def test_within_a_ray_job_its_cluster_is_joined(tmp_path, dead_address):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(dead_address)

    assert f"must answer at {dead_address}, where" in refusal(tmp_path, RAY_JOB_CONFIG_JSON_ENV_VAR="{}")


def test_a_cluster_file_left_behind_is_named(tmp_path, dead_address):
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(dead_address)

    assert refusal(tmp_path, "auto").startswith(
        f"ResourceError: a Ray cluster must answer at {dead_address}, where {file} expects it (remove that file if the "
        "cluster is gone), but nothing does"
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001"])
def test_an_address_of_another_kind_is_answered_with_the_job_command(tmp_path, address):
    assert refusal(tmp_path, address) == (
        f"ResourceError: the address of a Ray cluster must be HOST:PORT or auto, but is {address}: send the work there "
        "as a job (ray job submit --working-dir . -- python -m pipelines ...), or unset RAY_ADDRESS to run on this "
        "machine"
    )


# --- small rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
        "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
        "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    ],
)
def test_variables_that_let_parquet_files_run_code_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "1")

    with pytest.raises(ConfigError) as caught, ray_session(logical_cpus=1):
        pass

    assert str(caught.value) == (
        f"{name} must not be set, but is '1' in the environment: with it, reading a Parquet file can run code from "
        f"that file; unset {name}"
    )


@pytest.mark.parametrize("value", ["0", "", "false"])
def test_such_a_variable_may_say_no(monkeypatch, value):
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE", value)

    refuse_unsafe_environment()


def test_ray_data_gets_spare_cpus_beside_the_workers():
    assert [logical_cpus_for(workers) for workers in (1, 2, 8)] == [3, 4, 10]


@pytest.mark.parametrize(
    ("memory", "shared_memory", "expected"),
    [
        (4 * GIB, 4 * GIB, int(1.2 * GIB)),  # 30 % of the memory
        (64 * GIB, 64 * GIB, 2 * GIB),  # enough is enough
        (64 * GIB, 1 * GIB, int(0.9 * GIB)),  # within /dev/shm
        (64 * GIB, 64 * MIB, 2 * GIB),  # a container's default: too small for any store, so Ray uses the disk
        (64 * GIB, None, 2 * GIB),  # no /dev/shm
        (200 * MIB, None, OBJECT_STORE_LEAST_BYTES),
    ],
)
def test_the_object_store_is_bounded(memory, shared_memory, expected):
    assert default_object_store_bytes(memory, shared_memory) == expected


@pytest.mark.parametrize(
    ("files", "quota", "limits"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "1073741824\n"}, 1.5, [GIB]),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, []),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2, []),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, []),
        ({"memory/memory.limit_in_bytes": "2147483648"}, None, [2 * GIB]),
        ({}, None, []),
    ],
)
def test_a_containers_limits_are_read(tmp_path, files, quota, limits):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert machine.cpu_quota(tmp_path) == quota
    assert machine.memory_limits(tmp_path) == limits
