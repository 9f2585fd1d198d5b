"""constraints.txt fits pyproject.toml, and holds nothing that binds it to one machine, index or build of torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
PIN = re.compile(r"[a-z0-9-]+==[0-9][a-z0-9.]*( ; .+)?")  # no URL, hash, option, extra, range or local label (+cpu)
OF_ONE_BUILD = re.compile(r"(cuda|nvidia)-|triton$")


def pins_and_faults(lock: str) -> tuple[list[Requirement], list[str]]:
    pins, faults = [], []
    for number, line in enumerate(lock.splitlines(), 1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()  # comments, as pip tells them
        try:
            pin = Requirement(text) if PIN.fullmatch(text) else None
        except InvalidRequirement:
            pin = None
        if "/" in line:
            faults.append(f"line {number}: must hold no path and no address, but is {line!r}")
        elif pin and OF_ONE_BUILD.match(pin.name):
            faults.append(f"line {number}: {pin.name} is what one build of torch needs; the others would be refused")
        elif pin:
            pins.append(pin)
        elif text:
            faults.append(f"line {number}: must be name==version, perhaps with a marker, but is {text!r}")
    return pins, faults


def lock_faults(lock: str, project: dict[str, Any]) -> list[str]:
    pins, faults = pins_and_faults(lock)
    extras = project["optional-dependencies"].values()
    wanted = [Requirement(text) for text in [*project["dependencies"], *(text for extra in extras for text in extra)]]
    for python in PYTHONS:
        environment = {"python_version": python, "python_full_version": f"{python}.1"}
        here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
        for requirement in wanted:
            name = canonicalize_name(requirement.name)
            versions = [str(pin.specifier).removeprefix("==") for pin in here if pin.name == name]
            if len(versions) != 1:
                faults.append(f"{name} must be pinned once for Python {python}, but is pinned {len(versions)} times")
            elif not requirement.specifier.contains(versions[0], prereleases=True):
                faults.append(f"{name} must be {requirement.specifier} for Python {python}, but is {versions[0]}")
    return faults


def test_the_lock_pins_every_dependency_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    faults = lock_faults((ROOT / "constraints.txt").read_text(), project)
    assert not faults, "run `make lock`:\n" + "\n".join(faults)


PROJECT = {"dependencies": ["Alpha>=1,<2", "beta[x]>=3"], "optional-dependencies": {"dev": ["gamma_delta"]}}
ALPHA = "alpha==1.5.0.post1  # via beta\n"
BETA = "beta==3.0 ; python_full_version < '3.12'\nbeta==3.1 ; python_full_version >= '3.12'\n"
GAMMA = "# by make lock\ngamma-delta==0.1b2 ; sys_platform == 'linux'  # via dynamic-rnn (pyproject.toml)\n"


def test_a_right_lock_has_no_fault() -> None:
    assert lock_faults(ALPHA + BETA + GAMMA, PROJECT) == []


@pytest.mark.parametrize(
    ("lock", "fault"),
    [
        (ALPHA + BETA, "gamma-delta must be pinned once for Python 3.11, but is pinned 0 times"),
        (BETA + GAMMA, "alpha must be pinned once for Python 3.13, but is pinned 0 times"),
        (BETA + GAMMA + "alpha==2.0\n", "alpha must be <2,>=1 for Python 3.12, but is 2.0"),
        (ALPHA + GAMMA + BETA.splitlines()[0], "beta must be pinned once for Python 3.12, but is pinned 0 times"),
        (ALPHA + BETA + GAMMA + "alpha==1.6", "alpha must be pinned once for Python 3.11, but is pinned 2 times"),
    ],
)
def test_a_lock_that_does_not_fit_is_refused(lock: str, fault: str) -> None:
    assert fault in lock_faults(lock, PROJECT)


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.13.0+cpu",
        "torch>=2.13",
        "torch==2.13.*",
        "torch===2.13",
        "torch",
        "ray[data]==2.60.0",
        "torch==2.13.0 --hash=sha256:00",
        "torch==2.13.0 \\",
        "    --hash=sha256:00",
        "torch==2.13.0 ; sys_platform == 'linux' --hash=sha256:00",
        "--pre",
        "-e .",
    ],
)
def test_a_line_that_is_no_plain_pin_is_refused(line: str) -> None:
    fault = f"line 1: must be name==version, perhaps with a marker, but is {line.strip()!r}"
    assert pins_and_faults(line) == ([], [fault])


@pytest.mark.parametrize(
    "line",
    [
        "torch @ https://example.com/torch.whl",
        "--index-url https://example.com/simple",
        "--find-links wheels/",
        "#    uv pip compile /home/someone/pyproject.toml",
        "torch==2.13.0  # from https://example.com/simple",
    ],
)
def test_a_path_or_an_address_is_refused(line: str) -> None:
    assert pins_and_faults(line) == ([], [f"line 1: must hold no path and no address, but is {line!r}"])


@pytest.mark.parametrize("name", ["nvidia-cublas", "cuda-toolkit", "triton"])
def test_what_one_build_of_torch_brings_is_refused(name: str) -> None:
    fault = f"line 1: {name} is what one build of torch needs; the others would be refused"
    assert pins_and_faults(f"{name}==13.0 ; sys_platform == 'linux'") == ([], [fault])


# --- the Makefile ---


def planned(folder: Path, target: str) -> str:
    command = ["make", "--dry-run", target]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_change_of_the_lock_or_of_the_project_installs_again_with_the_lock(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    for seconds, name in enumerate(["pyproject.toml", "constraints.txt", ".venv/.ready"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    assert "pip install" not in planned(tmp_path, "test")
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(tmp_path / name, (9, 9))
        installs = r"pip install .*--constraint constraints\.txt .*--editable '\.\[dev\]'"
        assert re.search(installs, planned(tmp_path, "test"))
        os.utime(tmp_path / name, (0, 0))


def test_the_newest_versions_are_tried_without_the_lock() -> None:
    plan = planned(ROOT, "test-latest")
    assert ".venv-latest/bin/python -m pip install" in plan
    assert "constraint" not in plan
