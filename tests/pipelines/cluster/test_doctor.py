"""The doctor on this machine, and on what can be broken for real: a directory, a port, an address, a variable."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cluster import doctor
from pipelines.cluster.doctor import Check

ROOT = Path(__file__).resolve().parents[3]
MIB, GIB = 2**20, 2**30


@pytest.fixture(autouse=True)
def _own_temp_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def named(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


# --- this machine ----------------------------------------------------------------------------------------------------


def test_this_machine_passes_with_a_real_ray(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR")
    command = (
        "import sys; from pathlib import Path; from pipelines.cluster import doctor; sys.exit(doctor.run(Path('.')))"
    )

    finished = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )

    assert (finished.returncode, finished.stderr) == (0, ""), finished.stdout
    assert "started, ran a task and stopped in" in finished.stdout
    assert finished.stdout.splitlines()[-1].startswith("15 checks, 0 failed")


def test_importing_the_doctor_loads_neither_ray_nor_torch():
    command = "import sys, pipelines.cluster.doctor; print({'ray', 'torch', 'rich'} & sys.modules.keys())"

    output = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)

    assert output.stdout == "set()\n"


def test_every_finding_says_what_to_do(tmp_path, listener):
    port = listener.getsockname()[1]

    found = doctor.checks(tmp_path / "missing", start_ray=False, ports={port: "online serving"})

    assert all(check.advice for check in found if check.status != "ok")
    assert not any(check.advice for check in found if check.status == "ok")


# --- broken for real -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Path("/proc"), "No such file or directory"),  # which not even root can write to
        (Path(__file__), "Not a directory"),
        (Path("/does/not/exist"), "No such file or directory"),
    ],
)
def test_a_directory_that_cannot_be_written_fails_and_is_named(capsys, place, reason):
    assert doctor.run(place, start_ray=False) == 1

    assert (
        f"fail directory: {place} must be writable, but is not ({reason}): create it, or name another\n"
        in capsys.readouterr().out
    )


def test_a_taken_port_is_named(tmp_path, listener):
    port = listener.getsockname()[1]

    found = doctor.checks(tmp_path, start_ray=False, ports={port: "online serving"})

    assert named(found, f"port {port}") == Check(
        f"port {port}", "warn", "taken, wanted by online serving", "stop what holds it, or set serve.port=8001"
    )


def test_a_port_is_free_again_when_its_server_has_gone(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

    assert named(doctor.checks(tmp_path, start_ray=False, ports={port: "x"}), f"port {port}").status == "ok"


def test_a_cluster_file_left_behind_is_to_be_removed(tmp_path):
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        file.write_text(f"127.0.0.1:{gone.getsockname()[1]}\n")

    found = named(doctor.checks(tmp_path, start_ray=False), "Ray cluster")

    assert found.status == "warn"
    assert found.advice == f"its cluster is gone, and programs that look for one there will hang: rm {file}"


def test_a_cluster_that_answers_is_fine(tmp_path, listener):
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    host, port = listener.getsockname()
    file.write_text(f"{host}:{port}")

    found = named(doctor.checks(tmp_path, start_ray=False), "Ray cluster")

    assert (found.status, found.found) == ("ok", f"one answers at {host}:{port}; RAY_ADDRESS=auto joins it")


def test_a_ray_that_cannot_be_reached_fails_with_its_message(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")

    found = doctor.ray_check()

    assert (found.status, found.found) == ("fail", "no task could be run")
    assert found.advice.startswith(
        "the address of a Ray cluster must be HOST:PORT or auto, but is http://127.0.0.1:8265"
    )


def test_a_variable_that_lets_parquet_files_run_code_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE", "1")

    found = named(doctor.checks(tmp_path, start_ray=False), "environment")

    assert found.status == "fail"
    assert found.advice.endswith("unset RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE")


def test_a_temporary_directory_too_deep_for_sockets_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("d" * 40)))

    found = named(doctor.checks(tmp_path, start_ray=False), "Ray's socket path")

    assert (found.status, found.advice) == (
        "fail",
        "it must be 39 at most, for Ray's sockets: export RAY_TMPDIR=/tmp",
    )


# --- what each finding means -----------------------------------------------------------------------------------------


def test_packages_out_of_range_or_missing_are_named_one_by_one():
    found = doctor.package_checks(["pyarrow>=1", "rich<1", "no-such-package>=2"])

    assert [check.status for check in found] == ["ok", "fail", "fail"]
    assert found[0].found.startswith("pyarrow ")
    assert found[1].advice.endswith(": pip install 'rich<1'")
    assert found[2].found == "no-such-package must be >=2, but is missing"


def test_the_declared_requirements_are_pyprojects():
    assert any(requirement.startswith("ray[data,train,tune,serve]") for requirement in doctor.declared_requirements())


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "torch_sees", "visible", "status", "advice"),
    [
        ([], None, 0, None, "ok", ""),
        ([], "13.0", 0, None, "ok", ""),
        (["L4", "L4"], "13.0", 2, None, "ok", ""),
        (["L4"], None, 0, None, "warn", "to use the GPU: pip install --force-reinstall torch from PyPI, not +cpu"),
        (
            ["L4", "L4"],
            "13.0",
            1,
            "0",
            "warn",
            "CUDA_VISIBLE_DEVICES is '0' and hides GPUs: unset it to use them",
        ),
        (["L4"], "13.0", 0, None, "warn", "the NVIDIA driver must support CUDA 13.0: update the driver"),
    ],
)
def test_the_drivers_gpus_are_held_against_torchs(driver, torch_cuda, torch_sees, visible, status, advice):
    found = doctor.gpu_check(driver, torch_cuda, torch_sees, visible)

    assert (found.status, found.advice) == (status, advice)


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (doctor.python_check((3, 11)), "ok"),
        (doctor.python_check((3, 10)), "fail"),
        (doctor.cpu_check(2), "ok"),
        (doctor.cpu_check(1), "warn"),
        (doctor.memory_check(4 * GIB), "ok"),
        (doctor.memory_check(2 * GIB), "warn"),
        (doctor.shared_memory_check(16 * GIB, 8 * GIB), "ok"),
        (doctor.shared_memory_check(16 * GIB, 64 * MIB), "warn"),
        (doctor.shared_memory_check(16 * GIB, None), "ok"),
        (doctor.open_files_check(resource.RLIM_INFINITY), "ok"),
        (doctor.open_files_check(1024), "warn"),
        (doctor.ray_answer_check(0, "started 42\n", "", 7.0), "ok"),
        (doctor.ray_answer_check(0, "started 42\n", "", 40.0), "warn"),
        (doctor.ray_answer_check(-9, "", "", 1.0), "fail"),
    ],
)
def test_measures_are_judged(check, status):
    assert check.status == status
    assert bool(check.advice) == (status != "ok")


def test_a_small_container_is_told_the_option():
    found = doctor.shared_memory_check(16 * GIB, 64 * MIB)

    assert found.advice == "Ray keeps objects on the disk, which is slow: docker run --shm-size=2048m"


@pytest.mark.parametrize(("status", "exit_code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_only_a_failure_gives_an_exit_code(capsys, status, exit_code):
    advice = "" if status == "ok" else "do [this]"

    assert doctor.report([Check("thing", status, "a [b] c", advice)]) == exit_code

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["thing", status, "a", "[b]", "c"]
    assert lines[2:-1] == ([f"{status} thing: do [this]"] if advice else [])
