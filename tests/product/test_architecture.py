"""docs/architecture.md says what the tree is: its maps, the files it names, and where one changes what."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def package_map(pytestconfig: pytest.Config) -> ModuleType:
    spec = importlib.util.spec_from_file_location("package_map", pytestconfig.rootpath / "docs" / "package_map.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(pytestconfig: pytest.Config) -> str:
    return (pytestconfig.rootpath / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_maps_are_those_of_the_code(package_map: ModuleType, page: str) -> None:
    assert package_map.page_with_maps(page) == page, "run `python docs/package_map.py`"


def test_no_import_is_missing_in_the_maps(package_map: ModuleType) -> None:
    """Every import of the code is an arrow, or follows from arrows."""
    drawn: dict[str, set[str]] = {}
    for room in package_map.ROOMS:
        for name, target in re.findall(r"(\w+) --> (\w+)", package_map.drawing(room)):
            ends = [each if each in package_map.ROOMS else f"{room}.{each}" for each in (name, target)]
            drawn.setdefault(ends[0], set()).add(ends[1])
    for unit, targets in package_map.imports().items():
        room = unit.split(".")[0]
        wanted = {each if each.startswith(f"{room}.") else each.split(".")[0] for each in targets}
        assert wanted <= package_map.reached(drawn, unit), unit


def test_every_file_that_is_named_exists(page: str, pytestconfig: pytest.Config) -> None:
    named = set(re.findall(r"`((?:model|pipelines|tune|serve|tests|docs)/[\w/.]+\.\w+)`", page))
    assert len(named) > 50
    assert [path for path in sorted(named) if not (pytestconfig.rootpath / path).is_file()] == []


def test_what_one_changes_is_defined_where_the_page_says(page: str, pytestconfig: pytest.Config) -> None:
    rows = re.findall(r"^\| [^|]+ \| `([\w/.]+\.py)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(rows) == 20
    assert [(path, name) for path, name in rows if name not in definitions(pytestconfig.rootpath / path)] == []


def definitions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
