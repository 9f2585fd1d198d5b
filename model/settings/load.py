"""Settings: YAML and key=value in, a pydantic config or one clear ConfigError out. Used by every room.

    mapping = load_settings("run.yaml", ["train.epochs=3", "model.num_units=[64, 32]"])
    config = build(RunConfig, mapping, where="run.yaml")

Knows no Ray, no torch, no HTTP, and none of the configs themselves: each stands beside its owner.
`yaml_text` says how a plain word is read, `messages` how a fault is told, `describe` how settings are described.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from model.errors import ConfigError
from model.settings.describe import describe
from model.settings.messages import config_error, did_you_mean, dotted, fault_lines, quoted, true_as_number
from model.settings.yaml_text import dump_plain, parse_yaml

__all__ = [
    "Settings",
    "apply_overrides",
    "build",
    "describe",
    "did_you_mean",
    "dump_yaml",
    "load_settings",
]


class Settings(BaseModel):
    """The base of every config: frozen, no unknown keys, floats finite, defaults checked like the rest."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


SettingsType = TypeVar("SettingsType", bound=BaseModel)


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in the YAML file at `path`, also a URI, with the overrides applied; an empty file is `{}`."""
    try:
        text = _content(path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be YAML in UTF-8, but byte {error.start} is not") from error
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise ConfigError(f"{path}: must be a YAML file, but cannot be read: {reason}") from error
    mapping = parse_yaml(text, where=str(path))
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: must be a mapping of settings (`name: value`), but is {quoted(mapping)}")
    return apply_overrides(mapping, overrides)


def _content(path: str | Path) -> bytes:
    from model.storage import read_bytes  # loads pyarrow

    return read_bytes(path) if "://" in str(path) else Path(path).read_bytes()


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `mapping` with each `path.to.key=value` set: values are YAML, list items go by their index.

    `key=` sets null and `key=''` the empty string. Mappings on the way are made where missing or null; lists
    are not lengthened: give the whole list instead.
    """
    changed = deepcopy(dict(mapping))
    faults = []
    for override in overrides:
        try:
            _set(changed, *_split(override))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise config_error("overrides", faults)
    return changed


def build(config_class: type[SettingsType], mapping: Mapping[str, Any], *, where: str) -> SettingsType:
    """`mapping` as a config; every fault is told at once, with `where` (the file's name) before it."""
    value = dict(mapping) if isinstance(mapping, Mapping) else mapping
    faults = true_as_number(config_class, value)
    try:
        config = config_class.model_validate(value)
    except ValidationError as error:
        raise config_error(where, faults + fault_lines(config_class, error)) from error
    if faults:
        raise config_error(where, faults)
    return config


def dump_yaml(config: BaseModel) -> str:
    """The config as YAML that builds an equal config. A SecretStr is refused rather than written as stars."""
    return dump_plain(config.model_dump(by_alias=True))


def _split(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"{override!r} must have the form key=value, such as train.epochs=3")
    return path, parse_yaml(text, where=f"{override!r} (quote a value with special signs)")


def _set(node: Any, path: list[str], value: Any) -> None:
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        here = dotted(path[:depth])
        if isinstance(node, list):
            key: Any = _index(node, part, here)
        elif isinstance(node, dict):
            # A file may hold keys that are no strings, `class_weights: {0: 2.0}`; a path has only strings.
            key = next((known for known in node if str(known) == part), part)
        else:
            raise ConfigError(f"{dotted(path)} cannot be set, because {here} is {quoted(node)}, not a mapping")
        if last:
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]


def _index(items: list[Any], part: str, here: str) -> int:
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    must = f"an index from 0 to {len(items) - 1}" if items else "left out, since the list is empty"
    raise ConfigError(f"{here}.{part} cannot be set: {here} is a list, and {part!r} must be {must}")
