"""The floor plan as a test: who may import whom, what no file may do, and how large a file may grow.

Every rule reads one parsed file of our packages and returns its faults. The fake sources at the end prove
that each rule refuses what it should, so that no rule can pass by seeing nothing.

    model < pipelines < tune,  model < serve;  tune and serve never meet
"""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "model": {"model"},
    "pipelines": {"pipelines", "model"},
    "tune": {"tune", "pipelines", "model"},
    "serve": {"serve", "model"},
}
RAY_ROOMS = {
    "ray.data": {"pipelines"},
    "ray.train": {"pipelines", "tune"},
    "ray.tune": {"tune"},
    "ray.serve": {"serve"},
}
WEB = {"fastapi", "starlette", "uvicorn", "httpx", "requests", "aiohttp", "http", "urllib.request"}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "ray.cloudpickle"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save"}
FIXED = {
    "pyproject.toml", "pipelines", "model", "tune", "serve", "tests", "cluster.yaml", "README.md",
}  # fmt: skip
ALLOWED = FIXED | {
    "Makefile", "constraints.txt", ".ci", ".gitignore", "LICENSE", "CHANGELOG.md", "benchmarks", "docs", "examples",
}  # fmt: skip
MOST_FILE_LINES = 500
MOST_FUNCTION_LINES = 40
MOST_MODULES = 16  # a folder, without __init__.py


# --- a file, its imports, its faults ---


@dataclass(frozen=True)
class Import:
    line: int
    target: str  # what is imported, in full: `ray.data.Dataset` for `from ray.data import Dataset`
    bound: str  # the name it gets in the file; "" for import_module("...")
    plain: bool  # `import a.b`, without from and as: binds the package's own name
    in_function: bool


@dataclass(frozen=True)
class Source:
    path: PurePosixPath  # from the repository's root
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.path.parts[0]

    def imports(self) -> Iterator[Import]:
        return _imports(self.tree, in_function=False)

    def says(self, line: int, fault: str) -> str:
        return f"{self.path}:{line}: {fault}"


def _imports(node: ast.AST, *, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                bound = alias.asname or alias.name.split(".")[0]
                yield Import(child.lineno, alias.name, bound, alias.asname is None, in_function)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                target = f"{'.' * child.level}{child.module or ''}.{alias.name}"
                yield Import(child.lineno, target, alias.asname or alias.name, False, in_function)
        elif isinstance(child, ast.Call) and (target := _imported_by_call(child)):
            yield Import(child.lineno, target, "", False, in_function)
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, in_function=in_function or function)


def _imported_by_call(call: ast.Call) -> str:
    function = _dotted(call.func).split(".")[-1]
    return _leading_text(call.args[0]) if function in ("import_module", "__import__") and call.args else ""


def _leading_text(node: ast.expr) -> str:
    """The constant text a string begins with: `serve.` for f"serve.{name}"."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return _leading_text(node.values[0])
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain that begins with a name; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _within(target: str, module: str) -> bool:
    return target == module or target.startswith(f"{module}.")


def sources(root: Path) -> list[Source]:
    found = sorted(path for room in MAY_IMPORT for path in (root / room).rglob("*.py"))
    texts = [(path, path.read_text(encoding="utf-8")) for path in found]
    return [
        Source(PurePosixPath(path.relative_to(root).as_posix()), text, ast.parse(text, str(path)))
        for path, text in texts
    ]


# --- the rules ---


def rooms_import_only_what_lies_below_them(source: Source) -> Iterator[str]:
    for each in source.imports():
        room = each.target.split(".")[0]
        if room not in MAY_IMPORT or room in MAY_IMPORT[source.room]:
            continue
        if source.path.parent == PurePosixPath("pipelines/cli") and each.in_function:
            continue  # the front door opens every room, lazily
        fault = f"{source.room} may import {', '.join(sorted(MAY_IMPORT[source.room]))}"
        cure = "move the shared part down, or pass it in as a callable from pipelines/cli"
        yield source.says(each.line, f"{fault}, but imports {each.target}; {cure}")


def only_main_imports_the_front_door(source: Source) -> Iterator[str]:
    for each in source.imports():
        inside = source.path.parent == PurePosixPath("pipelines/cli") or source.path.name == "__main__.py"
        if _within(each.target, "pipelines.cli") and not inside:
            cure = "put what is shared into another file"
            yield source.says(each.line, f"only pipelines/__main__.py may import pipelines.cli; {cure}")


def ray_libraries_stay_in_their_rooms(source: Source) -> Iterator[str]:
    used = [(each.line, each.target) for each in source.imports()]
    used += [(node.lineno, _dotted(node)) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)]
    found = {(line, library) for line, target in used for library in RAY_ROOMS if _within(target, library)}
    for line, library in sorted(found):
        if source.room not in RAY_ROOMS[library]:
            rooms = " and ".join(sorted(RAY_ROOMS[library]))
            yield source.says(line, f"{library} belongs to {rooms}, but {source.room} uses it; move this there")


def ray_libraries_never_take_our_names(source: Source) -> Iterator[str]:
    for each in source.imports():
        if each.target in {*RAY_ROOMS, "ray"} and each.bound not in ("ray", ""):
            yield source.says(each.line, f"write `import {each.target}` in full, so that our names stay ours")
        elif each.bound in MAY_IMPORT and not each.plain:
            fault = f"{each.bound!r} is the name of our package, but here it names {each.target}"
            yield source.says(each.line, f"{fault}; choose another name")


def model_knows_no_ray_and_no_http(source: Source) -> Iterator[str]:
    for each in source.imports():
        if source.room == "model" and any(_within(each.target, banned) for banned in WEB | {"ray"}):
            fault = f"model must know no Ray and no HTTP, but imports {each.target}"
            yield source.says(each.line, f"{fault}; move this to pipelines or serve")


def imports_are_absolute(source: Source) -> Iterator[str]:
    for each in source.imports():
        if each.target.startswith("."):
            name = f"{source.room}.{each.target.lstrip('.')}"
            yield source.says(each.line, f"imports must be absolute: write {name}, not {each.target}")


def nothing_is_unpickled_or_evaluated(source: Source) -> Iterator[str]:
    cure = "no pickle and no code in what we read or write; use JSON, Arrow or safetensors"
    for each in source.imports():
        if any(_within(each.target, module) for module in PICKLES) or each.target in UNSAFE_CALLS:
            yield source.says(each.line, f"{each.target} is imported; {cure}")
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func)
        if name in UNSAFE_CALLS or name.endswith((".read_pickle", ".to_pickle")):
            yield source.says(node.lineno, f"{name} is called; {cure}")
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and not _is_false(keyword.value):
                yield source.says(node.lineno, f"allow_pickle must be False; {cure}")


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def modules_say_what_they_are(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree):
        cure = "say in the first lines what the module is, knows and does not know"
        yield source.says(1, f"the module has no docstring; {cure}")


def files_are_short(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > MOST_FILE_LINES:
        fault = f"a file has at most {MOST_FILE_LINES} lines, but this has {lines}"
        yield source.says(lines, f"{fault}; split it by idea")


def functions_are_short(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = _body_lines(node, source.text.splitlines())
            if lines > MOST_FUNCTION_LINES:
                fault = f"a function has at most {MOST_FUNCTION_LINES} lines, but {node.name} has {lines}"
                yield source.says(node.lineno, f"{fault}; give its steps names of their own")


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Lines of the body; docstring, blank lines, comment lines and the signature do not count."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    if not body:
        return 0
    written = lines[body[0].lineno - 1 : function.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in written)


def nothing_is_left_undone(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
            yield source.says(number, f"{found[1]} stands here; do it now, or file an issue and drop the mark")


def blind_excepts_are_justified(source: Source) -> Iterator[str]:
    # Ruff's BLE001 finds them; here, whoever silences it must say why, behind the noqa.
    for line, comment in _comments(source.text):
        if re.search(r"noqa:.*BLE001\W*$|noqa\s*$", comment):
            yield source.says(line, "this noqa gives no reason; write `# noqa: BLE001 - why all are caught`")


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


Rule = Callable[[Source], Iterator[str]]
RULES: list[Rule] = [
    rooms_import_only_what_lies_below_them,
    only_main_imports_the_front_door,
    ray_libraries_stay_in_their_rooms,
    ray_libraries_never_take_our_names,
    model_knows_no_ray_and_no_http,
    imports_are_absolute,
    nothing_is_unpickled_or_evaluated,
    modules_say_what_they_are,
    files_are_short,
    functions_are_short,
    nothing_is_left_undone,
    blind_excepts_are_justified,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    faults = [fault for source in sources(ROOT) for fault in rule(source)]
    assert not faults, f"{rule.__name__}:\n" + "\n".join(faults)


# --- the packages: each says what it may import, and keeps to it ---


def units(found: list[Source]) -> dict[str, frozenset[str]]:
    """What each unit may import: a package, or a module that stands in a room itself and says so on its own.

    The line `May import: a, b.c.` ends the docstring; `nothing` is no unit. A module of a room that says nothing is
    held to the room's own line.
    """
    said = {}
    for source in found:
        if source.path.name == "__init__.py" or len(source.path.parts) == 2:
            text = " ".join((ast.get_docstring(source.tree) or "").split())
            if match := re.search(r"May import: (.*?)\.( |$)", text):
                said[_module(source.path)] = frozenset(match[1].split(", ")) - {"nothing"}
    return said


def _module(path: PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _unit(name: str, said: dict[str, frozenset[str]]) -> str:
    """The unit that a dotted name belongs to."""
    room, _, rest = name.partition(".")
    unit = f"{room}.{rest.split('.')[0]}"
    return unit if unit in said else room


def package_faults(found: list[Source]) -> list[str]:
    """Imports that a package's own line does not allow, wherever they stand; packages without a line."""
    said = units(found)
    faults = [
        source.says(1, "a package says in its docstring what it knows, and last `May import: …`")
        for source in found
        if source.path.name == "__init__.py" and _module(source.path) not in said
    ]
    for source in found:
        unit = _unit(_module(source.path), said)
        allowed = said.get(unit, frozenset()) | {unit}
        for each in source.imports():
            target = _unit(each.target, said)
            if each.target.split(".")[0] not in MAY_IMPORT or {target, target.split(".")[0]} & allowed:
                continue
            if unit == "pipelines.cli" and each.in_function:
                continue  # the front door opens every room, lazily
            line = ", ".join(sorted(said.get(unit, ()))) or "nothing"
            faults.append(source.says(each.line, f"{unit} may import {line}, but imports {each.target}"))
    return faults


def circles(said: dict[str, frozenset[str]]) -> list[str]:
    """The units that may, over others, import themselves."""
    rooms = {name: {unit for unit in said if unit.split(".")[0] == name} for name in MAY_IMPORT}
    below = {
        unit: {each for name in names for each in (rooms[name] if name in MAY_IMPORT else {name}) if each != unit}
        for unit, names in said.items()
        if unit not in ("pipelines.cli", "pipelines.__main__")  # they lie above all others of their room
    }

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = set(below.get(start, ()))
        while todo:
            seen.add(unit := todo.pop())
            todo |= below.get(unit, set()) - seen
        return seen

    return sorted(unit for unit in below if unit in reached(unit))


def test_packages_import_what_they_say() -> None:
    assert package_faults(sources(ROOT)) == []


def test_no_packages_stand_in_a_circle() -> None:
    said = units(sources(ROOT))
    assert circles(said) == []
    strange = {name for names in said.values() for name in names} - set(said) - set(MAY_IMPORT)
    assert not strange, "these are named in a line, but are no packages"


PACKAGES = {
    "model/__init__.py": "May import: model.",
    "model/errors.py": "May import: nothing.",
    "model/tables/__init__.py": "Tables.\n\nMay import: model.errors.",
    "model/scan/__init__.py": "One pass.\n\nMay import: model.errors,\nmodel.tables.",
    "pipelines/__init__.py": "May import: model, pipelines.",
    "pipelines/cli/__init__.py": "May import: model, pipelines.",
    "tune/__init__.py": "May import: pipelines, model.",
    "serve/__init__.py": "May import: model.",
}


def _tree(root: Path, files: dict[str, str]) -> list[Source]:
    """The sources of a tree of the packages above and of these files."""
    documents = {path: f'"""{text}"""\n' for path, text in PACKAGES.items()}
    for path, text in (documents | files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return sources(root)


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("model/tables/a.py", "import model.scan.b", "model.tables may import model.errors, but imports model.scan.b"),
        (
            "model/errors.py",
            '"""May import: nothing."""\nfrom model import scan',
            "model.errors may import nothing, but imports model.scan",
        ),
        (
            "model/scan/a.py",
            "def f():\n    from serve import app",
            "model.scan may import model.errors, model.tables, but imports serve.app",
        ),
        (
            "pipelines/cli/a.py",
            "import tune.sweep",
            "pipelines.cli may import model, pipelines, but imports tune.sweep",
        ),
        ("model/new/__init__.py", "", "a package says in its docstring what it knows, and last `May import: …`"),
    ],
)
def test_an_import_that_a_package_does_not_say_is_refused(path: str, text: str, fault: str, tmp_path: Path) -> None:
    assert [each.split(": ", 1)[1] for each in package_faults(_tree(tmp_path, {path: text}))] == [fault]


def test_imports_that_the_packages_say_pass(tmp_path: Path) -> None:
    good = {
        "model/tables/a.py": "from model.errors import E\nimport model.tables.b",
        "model/scan/a.py": "from model import tables\nfrom model.tables.a import f",
        "pipelines/cli/a.py": "def f():\n    import tune.sweep\n    from serve.app import build_app",
        "tune/a.py": "from pipelines.config import C\nimport tune.b",
    }
    found = _tree(tmp_path, good)
    assert package_faults(found) == []
    assert circles({unit: names for unit, names in units(found).items() if unit not in MAY_IMPORT}) == []


def test_a_circle_is_found() -> None:
    said = {"model.a": {"model.b"}, "model.b": {"model.c"}, "model.c": {"model.a"}, "model.d": {"model.a"}}
    assert circles({unit: frozenset(names) for unit, names in said.items()}) == ["model.a", "model.b", "model.c"]


# --- the tree ---


def layout_faults(root: Path) -> list[str]:
    """A room holds packages, a package holds no further ones; tests is no package at all."""
    faults = []
    for room in MAY_IMPORT:
        folders = {path.parent.relative_to(root) for path in (root / room).glob("*/**/*.py")}
        for folder in sorted({PurePosixPath(room), *folders}):
            if not (root / folder / "__init__.py").is_file():
                faults.append(f"{folder}/__init__.py is missing; without it another {folder} on the path would win")
            many = len({path.name for path in (root / folder).glob("*.py")} - {"__init__.py"})
            if many > MOST_MODULES:
                fault = f"a folder holds at most {MOST_MODULES} modules, but this has {many}"
                faults.append(f"{folder}: {fault}; split it by idea")
            if len(folder.parts) > 2:
                faults.append(f"{folder}: a package holds no further packages; move its files up into {folder.parent}")
    faults += [
        f"{path.relative_to(root)}: tests is no package; remove the file"
        for path in sorted((root / "tests").rglob("__init__.py"))
    ]
    return faults


def top_level_faults(names: set[str]) -> list[str]:
    strange, missing = sorted(names - ALLOWED), sorted(FIXED - names)
    faults = [f"{name}: does not belong here; move it, or add it to .gitignore" for name in strange]
    return faults + [f"{name}: is missing; the layout puts it here" for name in missing]


def test_rooms_hold_packages_and_these_hold_modules() -> None:
    assert layout_faults(ROOT) == []


def test_the_top_level_holds_only_what_the_layout_lists() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is ours and what merely lies here cannot be told apart")
    # A hook's GIT_DIR would point git at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    paths = [path for path in done.stdout.split("\0") if path and (ROOT / path).exists()]
    assert top_level_faults({path.split("/")[0] for path in paths}) == []


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_our_names_resolve_to_this_repository(room: str) -> None:
    spec = importlib.util.find_spec(room)
    assert spec is not None, f"{room} cannot be imported: run the tests from the repository's root"
    assert spec.origin == str(ROOT / room / "__init__.py"), f"{room} resolves elsewhere; see what shadows it"


def test_every_room_is_read() -> None:
    assert {source.room for source in sources(ROOT)} == set(MAY_IMPORT)


def test_the_front_door_is_the_only_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"dynamic-rnn": "pipelines.cli.app:main"}


def test_ruff_watches_what_is_not_tested_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"BLE", "E", "F", "S110", "S112"} <= set(project["tool"]["ruff"]["lint"]["select"])


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("model", {"ray", "fastapi", "torch"}),
        # what the processes of data tasks load, each of them at each start
        ("model.batches.encode", {"ray", "torch", "pandas"}),
        ("model.scan.fragment_scan", {"ray", "torch", "pandas"}),
        ("pipelines.config", {"ray", "torch", "pandas"}),
        ("pipelines.ingest.fitted_data", {"ray", "torch"}),
        ("pipelines.ingest.read_task", {"ray", "torch", "pandas"}),
        ("pipelines.ingest.scan_task", {"ray", "torch", "pandas"}),
        ("pipelines.inspect.profile_task", {"ray", "torch"}),
        ("pipelines.predict.chain_shuffle", {"ray", "torch"}),
        ("pipelines.predict.score_task", {"ray", "torch"}),
        ("pipelines.prepare.tasks", {"ray", "torch"}),
        ("pipelines.tasks.task", {"ray", "torch", "pandas"}),
        ("pipelines.tracking.follower", {"ray", "torch", "pandas"}),
        ("model.settings.load", {"ray", "fastapi", "torch", "pyarrow"}),
        ("serve.client", {"torch"}),
        ("pipelines.cli.app", {"ray", "torch", "pandas", "pyarrow"}),
    ],
)
def test_an_import_stays_light(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"`import {module}` fails:\n{done.stderr}"
    assert done.stdout.split() == [], f"`import {module}` loads these; import them where they are used"


# --- the rules themselves: each fake source must be refused, at this line, and each good one let pass ---

DOC = '"""What it is."""\n'
BLIND = "try:\n    f()\nexcept Exception:  # noqa{}\n    g()\n"
REFUSED: list[tuple[Rule, str, str, int]] = [
    (rooms_import_only_what_lies_below_them, "model/a.py", "import pipelines.train", 1),
    (rooms_import_only_what_lies_below_them, "model/a.py", "def f():\n    from serve import app", 2),
    (rooms_import_only_what_lies_below_them, "pipelines/a.py", "from tune.sweep import sweep", 1),
    (rooms_import_only_what_lies_below_them, "pipelines/a.py", "def f():\n    import serve", 2),
    (rooms_import_only_what_lies_below_them, "pipelines/cli/app.py", "import tune", 1),
    (rooms_import_only_what_lies_below_them, "tune/a.py", "import model, serve.client", 1),
    (rooms_import_only_what_lies_below_them, "serve/a.py", "from pipelines import config", 1),
    (rooms_import_only_what_lies_below_them, "serve/a.py", "import_module('tune.space')", 1),
    (rooms_import_only_what_lies_below_them, "serve/a.py", "importlib.import_module(f'tune.{x}')", 1),
    (rooms_import_only_what_lies_below_them, "serve/a.py", "if TYPE_CHECKING:\n    import tune", 2),
    (only_main_imports_the_front_door, "pipelines/a.py", "import pipelines.cli", 1),
    (only_main_imports_the_front_door, "pipelines/a.py", "from pipelines import cli", 1),
    (only_main_imports_the_front_door, "tune/a.py", "from pipelines.cli import main", 1),
    (ray_libraries_stay_in_their_rooms, "model/a.py", "import ray.data", 1),
    (ray_libraries_stay_in_their_rooms, "tune/a.py", "from ray.data import Dataset", 1),
    (ray_libraries_stay_in_their_rooms, "pipelines/a.py", "from ray import tune", 1),
    (ray_libraries_stay_in_their_rooms, "serve/a.py", "import ray.train.torch", 1),
    (ray_libraries_stay_in_their_rooms, "pipelines/cli/app.py", "def f():\n    import ray.serve", 2),
    (ray_libraries_stay_in_their_rooms, "serve/a.py", "import ray\nray.data.read_parquet('x')", 2),
    (ray_libraries_never_take_our_names, "serve/a.py", "from ray import serve", 1),
    (ray_libraries_never_take_our_names, "serve/a.py", "import ray.serve as rs", 1),
    (ray_libraries_never_take_our_names, "tune/a.py", "from ray import tune as ray_tune", 1),
    (ray_libraries_never_take_our_names, "tune/a.py", "import ray as r", 1),
    (ray_libraries_never_take_our_names, "pipelines/a.py", "from ray import data, train", 1),
    (ray_libraries_never_take_our_names, "pipelines/a.py", "import other as serve", 1),
    (ray_libraries_never_take_our_names, "pipelines/a.py", "from pipelines.demo import model", 1),
    (model_knows_no_ray_and_no_http, "model/a.py", "import ray", 1),
    (model_knows_no_ray_and_no_http, "model/a.py", "def f():\n    from fastapi import FastAPI", 2),
    (model_knows_no_ray_and_no_http, "model/a.py", "from urllib import request", 1),
    (imports_are_absolute, "model/a.py", "from . import cells", 1),
    (imports_are_absolute, "model/a.py", "from .cells import lstm", 1),
    (imports_are_absolute, "model/a.py", "import_module('.cells', 'model')", 1),
    (nothing_is_unpickled_or_evaluated, "model/a.py", "import pickle", 1),
    (nothing_is_unpickled_or_evaluated, "model/a.py", "from ray import cloudpickle", 1),
    (nothing_is_unpickled_or_evaluated, "model/a.py", "x = 1\ntorch.load('x')", 2),
    (nothing_is_unpickled_or_evaluated, "model/a.py", "from torch import load", 1),
    (nothing_is_unpickled_or_evaluated, "model/a.py", "eval('1')", 1),
    (nothing_is_unpickled_or_evaluated, "model/a.py", "exec('1')", 1),
    (nothing_is_unpickled_or_evaluated, "model/a.py", "pd.read_pickle('x')", 1),
    (nothing_is_unpickled_or_evaluated, "model/a.py", "np.load('x', allow_pickle=True)", 1),
    (modules_say_what_they_are, "model/a.py", "x = 1", 1),
    (modules_say_what_they_are, "model/__init__.py", "", 1),
    (files_are_short, "model/a.py", "x = 1\n" * 501, 501),
    (functions_are_short, "model/a.py", "def f():\n" + "    x = 1\n" * 41, 1),
    (functions_are_short, "model/a.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 41, 2),
    (nothing_is_left_undone, "model/a.py", "x = 1\ny = 2  # TODO: z", 2),
    (nothing_is_left_undone, "model/a.py", "# FIXME", 1),
    (
        nothing_is_left_undone,
        "model/a.py",
        DOC + 'def f():\n    """Half of it.\n\n    TODO: the rest.\n    """',
        5,
    ),
    (blind_excepts_are_justified, "model/a.py", BLIND.format(": BLE001"), 3),
    (blind_excepts_are_justified, "model/a.py", BLIND.format(""), 3),
]
ACCEPTED = {
    "model/a.py": "import torch\nfrom model.cells import lstm\nimport model.state\n",
    "model/b.py": "network.eval()\nnp.load('x', allow_pickle=False)\nimport_module(name)\nscale.load('x')\n",
    "model/c.py": 'def f():\n    """Says it."""\n' + "    x = 1\n" * 40 + "\n    # why\n" * 9 + "    # end\n",
    "model/d.py": "x = 1\n" * 499,
    "model/e.py": BLIND.format(": BLE001 - told to the caller"),
    "pipelines/__main__.py": "from pipelines.cli.app import main\nmain()\n",
    "pipelines/cli/app.py": "def f():\n    import tune.sweep\n    from serve.app import build_app\n",
    "pipelines/a.py": "import ray\nimport ray.data\nfrom ray.train.torch import TorchTrainer\n",
    "tune/a.py": "import ray.tune\nimport ray.train\nfrom pipelines.train import train\nself.ray.data = 1\n",
    "serve/a.py": "import ray.serve\nimport serve.codec\nfrom model import scoring\nimport fastapi\n",
}


def _fake(root: Path, path: str, text: str) -> Source:
    (root / path).parent.mkdir(parents=True)
    (root / path).write_text(text)
    [source] = sources(root)
    return source


@pytest.mark.parametrize(
    ("rule", "path", "text", "line"),
    REFUSED,
    ids=[f"{rule.__name__}-{number}" for number, (rule, *_) in enumerate(REFUSED)],
)
def test_a_rule_refuses(rule: Rule, path: str, text: str, line: int, tmp_path: Path) -> None:
    faults = list(rule(_fake(tmp_path, path, text)))
    assert faults, f"{rule.__name__} must refuse {text[:80]!r} in {path}"
    assert all(fault.startswith(f"{path}:{line}: ") for fault in faults), faults


@pytest.mark.parametrize("path", ACCEPTED)
def test_what_is_right_breaks_no_rule(path: str, tmp_path: Path) -> None:
    source = _fake(tmp_path, path, DOC + ACCEPTED[path])
    assert [fault for rule in RULES for fault in rule(source)] == []


def test_every_rule_has_a_source_it_refuses() -> None:
    assert {rule for rule, *_ in REFUSED} == set(RULES)


def test_a_fault_says_file_line_and_what_to_do(tmp_path: Path) -> None:
    source = _fake(tmp_path, "tune/a.py", DOC + "import serve.client\n")
    assert list(rooms_import_only_what_lies_below_them(source)) == [
        "tune/a.py:2: tune may import model, pipelines, tune, but imports serve.client; move the shared part "
        "down, or pass it in as a callable from pipelines/cli"
    ]


def test_packages_without_a_face_and_packages_in_packages_are_refused(tmp_path: Path) -> None:
    for path in ("model/cells/a.py", "serve/__init__.py", "serve/a/b/__init__.py", "tests/a/__init__.py", "tune/a.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert layout_faults(tmp_path) == [
        "model/__init__.py is missing; without it another model on the path would win",
        "model/cells/__init__.py is missing; without it another model/cells on the path would win",
        "pipelines/__init__.py is missing; without it another pipelines on the path would win",
        "tune/__init__.py is missing; without it another tune on the path would win",
        "serve/a/b: a package holds no further packages; move its files up into serve/a",
        "tests/a/__init__.py: tests is no package; remove the file",
    ]


def test_a_stray_and_a_missing_top_level_name_are_refused() -> None:
    assert top_level_faults(ALLOWED) == []
    assert top_level_faults(FIXED - {"tune"} | {"notes.txt"}) == [
        "notes.txt: does not belong here; move it, or add it to .gitignore",
        "tune: is missing; the layout puts it here",
    ]


@pytest.mark.parametrize("collects", [True, False])
def test_an_import_leaves_garbage_collection_as_it_was(collects: bool) -> None:
    code = f"import gc; {'gc.enable' if collects else 'gc.disable'}(); from model import Scorer; print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{collects}\n"
