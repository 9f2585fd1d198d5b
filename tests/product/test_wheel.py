"""The wheel holds all of our packages, and is usable where it is installed with its dependencies and nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("model", "pipelines", "tune", "serve")
# A hook's GIT_DIR would point git at another repository, and PYTHONPATH Python at our sources.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PYTHONPATH"))}


def run(command: list[str | Path], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    run(command, folder)
    [built] = folder.glob("*.whl")
    return built


def needed(requirements: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that the requirements name, and what those require in turn."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen, waiting = set(), [(text, "") for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if (text, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add((text, extra))
        found[requirement.name] = distribution = importlib.metadata.distribution(requirement.name)
        waiting += [(one, asked) for one in distribution.requires or [] for asked in ("", *requirement.extras)]
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and, as links to the running environment, what the wheel requires.

    Installing all of that takes minutes and an index, and every `make` in a fresh clone does it. What could be wrong
    with a wheel shows here as well: a file of ours that is missing, or an import of what only the extra `dev` has.
    The links leave out our own in-place installation, so that the sources cannot stand in for the wheel.
    """
    folder = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], folder)
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    [ours] = importlib.metadata.distributions(path=[str(site)])
    for distribution in needed(ours.requires or []).values():
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(distribution.locate_file(name))))
    return python.parent


def test_the_wheel_holds_every_file_of_our_packages_and_no_other(wheel: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is ours and what merely lies here cannot be told apart")
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *ROOMS], ROOT)
    ours = {path for path in listed.split("\0") if path and (ROOT / path).is_file()}
    assert {Path(path).suffix for path in ours} >= {".py", ".html", ".yaml"}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == ours


def test_the_installed_command_runs_in_any_folder(installed: Path, tmp_path: Path) -> None:
    assert "Usage: dynamic-rnn" in run([installed / "dynamic-rnn", "--help"], tmp_path)


@pytest.mark.parametrize("module", ["model", "serve.client"])
def test_the_installed_packages_are_imported_in_any_folder(installed: Path, tmp_path: Path, module: str) -> None:
    found = run([installed / "python", "-c", f"import {module} as found; print(found.__file__)"], tmp_path)
    assert Path(found).is_relative_to(installed.parent)


@pytest.mark.slow
def test_every_installed_module_is_imported_with_the_declared_dependencies_alone(
    installed: Path, tmp_path: Path
) -> None:
    code = f"""
import importlib, pkgutil
for room in {ROOMS}:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        if not module.name.endswith(".__main__"):
            print(importlib.import_module(module.name).__file__)
"""
    files = [Path(line) for line in run([installed / "python", "-c", code], tmp_path).splitlines()]
    assert len(files) > 100
    assert all(file.is_relative_to(installed.parent) for file in files)
