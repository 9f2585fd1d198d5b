"""`dynamic-rnn doctor`: checks whether this machine can run the product, and says what to do where it cannot.

Each check is a function from what was found to a `Check`; `checks` looks, `report` prints. Knows the machine and what
Ray and torch need from it; knows no data and no model. Ray and torch are imported by the checks that need them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import DynamicRnnError
from pipelines.cluster.machine import GIB, cpu_count, listens, memory_bytes, port_is_free, shared_memory_free_bytes
from pipelines.cluster.private_ray import OBJECT_STORE_LEAST_BYTES, SOURCE_ROOT, default_object_store_bytes
from pipelines.cluster.session import cluster_file, ray_temp_directory, refuse_unsafe_environment

SERVE_PORT = 8000
DASHBOARD_PORT = 8265
OPEN_FILES_LEAST = 8192
MEMORY_LEAST_BYTES = 4 * GIB
DISK_LEAST_BYTES = 1 * GIB
DISK_ENOUGH_BYTES = 10 * GIB
RAY_SECONDS = 20.0  # a task of a fresh Ray takes 5 to 10
RAY_MOST_SECONDS = 90.0
# A socket's path is 107 bytes at most, and Ray adds /ray/session_<date>_<time>_<µs>_<pid>/sockets/plasma_store.
TEMP_PATH_MOST_BYTES = 107 - 68

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `advice` says what to do, and is empty where nothing is to be done."""

    name: str
    status: Status
    found: str
    advice: str = ""


def run(directory: Path, *, start_ray: bool = True) -> int:
    """Check this machine for work in `directory`, print what was found, and return the exit code."""
    return report(checks(directory, start_ray=start_ray))


def checks(
    directory: Path,
    *,
    start_ray: bool = True,
    ports: Mapping[int, str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[Check]:
    """Everything `doctor` looks at. `ports` maps a port to what wants it."""
    wanted = {SERVE_PORT: "online serving", DASHBOARD_PORT: "Ray's dashboard"} if ports is None else ports
    found = [
        python_check(sys.version_info[:2]),
        *package_checks(declared_requirements()),
        gpu_check(nvidia_gpus(), *torch_gpus(), environment.get("CUDA_VISIBLE_DEVICES")),
        cpu_check(cpu_count()),
        memory_check(memory_bytes()),
        shared_memory_check(memory_bytes(), shared_memory_free_bytes()),
        open_files_check(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        directory_check("directory", directory),
        directory_check("Ray's directory", ray_temp_directory(), create=True),
        temp_path_check(ray_temp_directory().parent),
        *(port_check(port, what, free=port_is_free(port)) for port, what in wanted.items()),
        cluster_file_check(cluster_file()),
        environment_check(),
    ]
    return [*found, ray_check()] if start_ray else found


def report(checks: Sequence[Check]) -> int:
    """Print the checks as a table, then what to do; 1 if any failed, else 0."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colors = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False)
    for title in ("check", "", "found"):
        table.add_column(title, overflow="fold")
    for check in checks:
        table.add_row(check.name, Text(check.status, colors[check.status]), Text(check.found))
    console.print(table)
    todo = [check for check in checks if check.status != "ok"]
    for check in todo:
        # Whole lines, unwrapped: they are meant to be searched and copied.
        console.print(f"{check.status} {check.name}: {check.advice}", soft_wrap=True, style=colors[check.status])
    failed = sum(check.status == "fail" for check in checks)
    console.print(f"{len(checks)} checks, {failed} failed, {len(todo) - failed} to look at")
    return 1 if failed else 0


# --- software --------------------------------------------------------------------------------------------------------


def python_check(version: tuple[int, int]) -> Check:
    found = f"{platform.python_implementation()} {'.'.join(map(str, version))} on {platform.system()}"
    if version >= (3, 11):
        return Check("Python", "ok", found)
    return Check("Python", "fail", found, "Python must be 3.11 or newer: make PYTHON=python3.12 test")


def declared_requirements() -> list[str]:
    """Our dependency ranges: the source tree's pyproject.toml, else the installed distribution's metadata."""
    project = SOURCE_ROOT / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text())["project"]["dependencies"])
    return [line for line in importlib.metadata.requires("dynamic-rnn") or [] if "extra ==" not in line]


def package_checks(requirements: Iterable[str]) -> list[Check]:
    """One line for all that fit, and one for each package that is missing or out of its range."""
    from packaging.requirements import Requirement

    fitting, faults = [], []
    for requirement in map(Requirement, requirements):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version != "missing" and requirement.specifier.contains(version, prereleases=True):
            fitting.append(f"{requirement.name} {version}")
        else:
            must = f"{requirement.name} must be {requirement.specifier}, but is {version}"
            faults.append(Check("packages", "fail", must, f"{must}: pip install '{requirement}'"))
    return [*([Check("packages", "ok", ", ".join(fitting))] if fitting else []), *faults]


def environment_check() -> Check:
    try:
        refuse_unsafe_environment()
    except DynamicRnnError as error:
        return Check("environment", "fail", str(error).partition(":")[0], str(error))
    return Check("environment", "ok", "no variable that makes Parquet files run code")


# --- hardware --------------------------------------------------------------------------------------------------------


def nvidia_gpus() -> list[str]:
    """The driver's list of GPUs; empty where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def torch_gpus() -> tuple[str | None, int]:
    """The CUDA version torch was built for (None: a CPU build, or no torch at all) and how many GPUs it sees."""
    try:
        import torch
    except ImportError:
        return None, 0
    return torch.version.cuda, torch.cuda.device_count()


def gpu_check(driver: Sequence[str], torch_cuda: str | None, torch_sees: int, visible: str | None) -> Check:
    """What the driver sees against what torch can use."""
    build = f"torch is a CUDA {torch_cuda} build" if torch_cuda else "torch is a CPU build"
    names = f"{len(driver)} GPU{'' if len(driver) == 1 else 's'} ({', '.join(driver)})" if driver else "no GPU"
    found = f"{names}, torch sees {torch_sees}; {build}"
    if not driver or torch_sees == len(driver):
        return Check("GPU", "ok", found)
    if torch_cuda is None:
        return Check("GPU", "warn", found, "to use the GPU: pip install --force-reinstall torch from PyPI, not +cpu")
    if visible is not None:
        return Check("GPU", "warn", found, f"CUDA_VISIBLE_DEVICES is {visible!r} and hides GPUs: unset it to use them")
    return Check("GPU", "warn", found, f"the NVIDIA driver must support CUDA {torch_cuda}: update the driver")


def cpu_check(cpus: int) -> Check:
    if cpus >= 2:
        return Check("CPUs", "ok", str(cpus))
    return Check("CPUs", "warn", str(cpus), "one CPU trains, reads and serves in turn: expect it to be slow")


def memory_check(total_bytes: int) -> Check:
    found = _gib(total_bytes)
    if total_bytes >= MEMORY_LEAST_BYTES:
        return Check("memory", "ok", found)
    advice = f"Ray ends tasks when memory runs out: give it {_gib(MEMORY_LEAST_BYTES)} (a container: --memory)"
    return Check("memory", "warn", found, advice)


def shared_memory_check(total_bytes: int, free_bytes: int | None) -> Check:
    if free_bytes is None:
        return Check("shared memory", "ok", "no /dev/shm on this system")
    wanted = default_object_store_bytes(total_bytes, None)
    found = f"{_gib(free_bytes)} free in /dev/shm"
    if free_bytes >= min(wanted, GIB):
        return Check("shared memory", "ok", found)
    # Below that Ray puts its objects on the disk; above it, in a store smaller than we would like.
    effect = "Ray keeps objects on the disk" if free_bytes < OBJECT_STORE_LEAST_BYTES else "Ray's store will be small"
    return Check("shared memory", "warn", found, f"{effect}, which is slow: docker run --shm-size={wanted // 2**20}m")


def open_files_check(limit: int) -> Check:
    # Ray raises the soft limit to the hard one itself.
    found = "no limit" if limit == resource.RLIM_INFINITY else str(limit)
    if limit == resource.RLIM_INFINITY or limit >= OPEN_FILES_LEAST:
        return Check("open files", "ok", found)
    return Check("open files", "warn", found, "many workers or clients need more: ulimit -n 65536")


# --- places ----------------------------------------------------------------------------------------------------------


def directory_check(name: str, directory: Path, *, create: bool = False) -> Check:
    """Really writes a file there, and looks at the space that is left."""
    try:
        if create:
            directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(b"dynamic-rnn")
            file.flush()
        free_bytes = shutil.disk_usage(directory).free
    except OSError as error:
        advice = f"{directory} must be writable, but is not ({error.strerror}): create it, or name another"
        return Check(name, "fail", f"{directory}: {error.strerror}", advice)
    found = f"{directory.resolve()} can be written, {_gib(free_bytes)} free"
    if free_bytes >= DISK_ENOUGH_BYTES:
        return Check(name, "ok", found)
    advice = f"checkpoints and spilled objects need space: free {_gib(DISK_ENOUGH_BYTES)} on the disk of {directory}"
    return Check(name, "warn" if free_bytes >= DISK_LEAST_BYTES else "fail", found, advice)


def temp_path_check(directory: Path) -> Check:
    length = len(os.fsencode(directory))
    found = f"{directory} is {length} bytes long"
    if length <= TEMP_PATH_MOST_BYTES:
        return Check("Ray's socket path", "ok", found)
    advice = f"it must be {TEMP_PATH_MOST_BYTES} at most, for Ray's sockets: export RAY_TMPDIR=/tmp"
    return Check("Ray's socket path", "fail", found, advice)


def port_check(port: int, wanted_by: str, *, free: bool) -> Check:
    if free:
        return Check(f"port {port}", "ok", f"free, for {wanted_by}")
    if port == DASHBOARD_PORT:
        advice = "nothing to do: Ray takes the next one (or is it a Ray that should have ended?)"
    else:
        advice = "stop what holds it, or set serve.port=8001"
    return Check(f"port {port}", "warn", f"taken, wanted by {wanted_by}", advice)


def cluster_file_check(file: Path) -> Check:
    """A cluster that was killed leaves its address behind, and a bare `ray.init()` then waits for it."""
    if not file.is_file():
        return Check("Ray cluster", "ok", "none left behind here")
    address = file.read_text().strip()
    if listens(address):
        return Check("Ray cluster", "ok", f"one answers at {address}; RAY_ADDRESS=auto joins it")
    advice = f"its cluster is gone, and programs that look for one there will hang: rm {file}"
    return Check("Ray cluster", "warn", f"{file} names {address}, where nothing answers", advice)


# --- Ray -------------------------------------------------------------------------------------------------------------

_PROBE = """
from pipelines.cluster import ray_session
with ray_session(logical_cpus=1) as session:
    import ray
    print("started" if session.started else f"joined {session.address}", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def ray_check() -> Check:
    """Really starts Ray (or joins RAY_ADDRESS) and runs a task, in a process of its own that cannot outlive us."""
    before = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE_ROOT), os.environ.get("PYTHONPATH", "")])}
    probe = subprocess.Popen(
        [sys.executable, "-c", _PROBE],
        env=environment,
        start_new_session=True,  # so that it can be ended with all its children
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = probe.communicate(timeout=RAY_MOST_SECONDS)
    except subprocess.TimeoutExpired:
        found = f"no task was run in {RAY_MOST_SECONDS:g} s"
        return Check("Ray", "fail", found, f"{_see_logs()}; dynamic-rnn doctor --no-ray skips this check")
    finally:
        if probe.poll() is None:
            os.killpg(probe.pid, signal.SIGKILL)
            probe.communicate()
    return ray_answer_check(probe.returncode, output, errors, time.monotonic() - before)


def ray_answer_check(exit_code: int, output: str, errors: str, seconds: float) -> Check:
    if exit_code != 0 or not output.rstrip().endswith("42"):
        last = (errors.strip().splitlines() or [f"exit code {exit_code}, no message"])[-1]
        message = re.sub(r"^[\w.]+Error: ", "", last)  # the exception's name is for programmers
        return Check("Ray", "fail", "no task could be run", f"{message}; {_see_logs()}")
    found = f"{output.rsplit(' ', 1)[0].strip()}, ran a task and stopped in {seconds:.0f} s"
    if seconds <= RAY_SECONDS:
        return Check("Ray", "ok", found)
    return Check("Ray", "warn", found, f"more than {RAY_SECONDS:g} s is slow: is the machine busy, or its disk?")


def _see_logs() -> str:
    return f"see {ray_temp_directory() / 'session_latest' / 'logs'}"


def _gib(count_bytes: int) -> str:
    return f"{count_bytes / GIB:.1f} GiB"
