"""docs/cluster.md holds: its commands parse, its files are there, its settings and messages are those of the code."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.settings import build
from pipelines.config import DataConfig, ResourcesConfig, RunConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
OURS = ("python", "-m", "pipelines")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The console blocks' commands as words, without their comments."""
    lines = [line for line in "".join(blocks("console")).splitlines() if line]
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(re.sub(r"\s+# .*$", "", line.removeprefix("$ "))) for line in lines]


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found.group(1)


def table(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    rows = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def test_every_command_is_known_to_this_test() -> None:
    known = {"ray", "pip", "aws", "export", "helm", "docker", "kubectl", "curl"}
    assert {words[0] for words in commands()} == known


def ray_options(name: list[str]) -> set[str]:
    """The options of a command of Ray's; KeyError where there is no such command."""
    from ray.scripts.scripts import cli

    command: Any = cli
    for word in name:
        command = command.commands[word]
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_rays_commands_and_options_exist() -> None:
    asked = [words for words in commands() if words[0] == "ray"]
    assert len(asked) >= 12
    for words in asked:
        name = words[1:3] if words[1] == "job" else words[1:2]
        own = words[: words.index("--")] if "--" in words else words
        assert {word for word in own if word.startswith("--")} <= ray_options(name), " ".join(words)


def jobs() -> list[list[str]]:
    """What the jobs run, as words after `python -m pipelines`."""
    submitted = [words[words.index("--") + 1 :] for words in commands() if words[:3] == ["ray", "job", "submit"]]
    assert all(tuple(words[:3]) == OURS for words in submitted)
    return [words[3:] for words in submitted]


def test_jobs_run_commands_of_ours_with_settings_of_ours() -> None:
    from pipelines.cli.app import app

    names = {each.callback.__name__.replace("_", "-") for each in app.registered_commands if each.callback}
    assert {words[0] for words in jobs()} == {"train", "tune", "evaluate", "predict"} <= names
    for setting in (word for words in jobs() for word in words if "=" in word):
        key = setting.partition("=")[0].split(".")
        fields = ResourcesConfig.model_fields if key[0] == "resources" else RunConfig.model_fields
        assert key[-1] in fields, setting


def test_the_files_it_names_are_there() -> None:
    linked = [ROOT / "docs" / target for target in re.findall(r"\]\(([^#)][^)]*)\)", PAGE)]
    named = [ROOT / name for name in re.findall(r"(?:docs|tests)/[\w/]+(?:\.\w+)?", PAGE)]
    spoken = [ROOT / word for words in commands() for word in words if re.fullmatch(r"docs/\S+|cluster\.yaml", word)]
    assert linked
    assert spoken
    assert [path for path in (*linked, *named, *spoken) if not path.exists()] == []


def test_its_own_links_lead_somewhere() -> None:
    titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) == titles


def test_the_settings_and_their_defaults_are_those_of_the_code() -> None:
    for name, default, _ in table("Workers, GPUs and autoscaling"):
        field = ResourcesConfig.model_fields[name.strip("`").removeprefix("resources.")]
        assert str(field.default).removesuffix(".0") == default, name


def test_the_settings_shown_are_accepted() -> None:
    (shown,) = (yaml.safe_load(block) for block in blocks("yaml"))
    assert build(DataConfig, shown["data"], where="docs/cluster.md").train == "s3://my-bucket/sequences/train"
    assert shown.keys() <= RunConfig.model_fields.keys()


@cache
def spoken() -> str:
    """Every string constant of the packages, an f-string's parts joined by `…`."""
    texts = []
    for path in (path for room in ("model", "pipelines", "tune", "serve") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


MESSAGES = [part for row in table("What our messages mean") for part in re.findall(r"`([^`]+)`", row[0])]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_explained_is_one_of_ours(message: str) -> None:
    assert message in spoken()


def test_messages_that_nobody_says_are_found() -> None:
    assert len(MESSAGES) >= 15
    assert "must be in the Ray clutser" not in spoken()


def test_options_that_ray_does_not_know_are_found() -> None:
    assert "--working-dir" in ray_options(["job", "submit"])
    assert "--worker-dir" not in ray_options(["job", "submit"])
    with pytest.raises(KeyError):
        ray_options(["job", "sbumit"])
