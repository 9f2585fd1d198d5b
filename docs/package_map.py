"""Draws the map of packages in docs/architecture.md from the imports of the code: `python docs/package_map.py`.

An arrow means "imports". What follows from other arrows is left out, so that the drawing can be read; a test holds the
page against the code.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
ROOMS = ("model", "pipelines", "serve", "tune")
HIDDEN = {"model", "model.errors", "model.cells", "pipelines.prepare_settings", "pipelines.__main__"}  # faces; errors
Imports = dict[str, set[str]]


def unit_of(name: str) -> str | None:
    """The package (or the module that stands in a room itself) that a dotted name belongs to; None: not ours."""
    parts = name.split(".")
    if parts[0] not in ROOMS:
        return None
    below = ROOT.joinpath(*parts[:2])
    ours = len(parts) > 1 and parts[0] != "tune" and (below.is_dir() or below.with_suffix(".py").is_file())
    return ".".join(parts[:2]) if ours else parts[0]


def imports() -> Imports:
    """What each unit imports, anywhere in its files; the commands, which open every other, are left out."""
    found: Imports = {}
    for path in sorted(each for room in ROOMS for each in (ROOT / room).rglob("*.py")):
        unit = unit_of(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"))
        assert unit is not None
        targets = found.setdefault(unit, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            targets |= {target for name in names if (target := unit_of(name)) not in (None, unit)}
    return {
        unit: targets - HIDDEN
        for unit, targets in found.items()
        if unit not in HIDDEN | {"pipelines", "pipelines.cli", "serve"}
    }


def reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """All that is imported over others."""
    seen: set[str] = set()
    todo = set(graph.get(start, ()))
    while todo:
        seen.add(unit := todo.pop())
        todo |= graph.get(unit, set()) - seen
    return seen


def reduced(graph: Mapping[str, set[str]]) -> Imports:
    """Without the arrows that follow from others. The graph has no circle."""
    return {
        unit: {each for each in targets if not any(each in reached(graph, other) for other in targets - {each})}
        for unit, targets in graph.items()
    }


def drawing(room: str) -> str:
    """A room's packages as a Mermaid flow chart. For the rooms above model, `model` is one box."""
    graph: Imports = {}
    for unit, targets in imports().items():
        if unit.split(".")[0] == room:
            graph[unit] = {each if each.startswith(room) else each.split(".")[0] for each in targets}
    lines = ["```mermaid", "flowchart BT"]
    for unit, targets in sorted(reduced(graph).items()):
        name = unit.partition(".")[2] or unit
        lines += [f"  {name} --> {each.partition('.')[2] or each}" for each in sorted(targets)]
        lines += [f"  {name}"] if not targets else []
    return "\n".join([*lines, "```"])


def page_with_maps(text: str) -> str:
    """The page with each drawing as the code has it now."""
    for room in ROOMS:
        before, _, rest = text.partition(f"<!-- map of {room} -->\n")
        _, _, after = rest.partition("<!-- end of map -->")
        text = f"{before}<!-- map of {room} -->\n{drawing(room)}\n<!-- end of map -->{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page_with_maps(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} is drawn\n")
