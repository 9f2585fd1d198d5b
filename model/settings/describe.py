"""A config class described: a commented YAML file with every setting. Knows no values but the defaults."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from model.settings.fields import bounds_words, fields_of, nested, type_words
from model.settings.yaml_text import dump_line

_WIDTH = 100


def describe(config_class: type[BaseModel]) -> str:
    """Every setting as YAML: its description above, then `key: default  # type and limits`.

    A required setting has no value. What an empty or null default could hold is shown commented out.
    """
    return "\n".join(_skeleton(config_class, None, ())) + "\n"


def _skeleton(
    config_class: type[BaseModel], defaults: BaseModel | None, above: tuple[type[BaseModel], ...]
) -> list[str]:
    """The lines of every field; `defaults` is the instance whose values they show, where there is one."""
    lines = []
    for name, field in fields_of(config_class).items():
        lines += [f"# {line}" for line in wrap(field.description or "", _WIDTH)]
        lines += _field(name, field, _default(config_class, field, defaults), (*above, config_class))
    return lines


def _default(config_class: type[BaseModel], field: FieldInfo, defaults: BaseModel | None) -> Any:
    if defaults is None:
        return field.get_default(call_default_factory=True, validated_data={})
    return next(getattr(defaults, own) for own, f in config_class.model_fields.items() if f is field)


def _field(name: str, field: FieldInfo, default: Any, above: tuple[type[BaseModel], ...]) -> list[str]:
    inner = [(path, held) for path, held in nested(field.annotation) if held not in above]
    if isinstance(default, BaseModel):
        return [f"{name}:", *_indented(_skeleton(type(default), default, above))]
    required = default is PydanticUndefined
    if required and len(inner) == 1 and inner[0][0] == ():
        return [f"{name}:", *_indented(_skeleton(inner[0][1], None, above))]
    said = ", ".join(words for words in (type_words(field.annotation), bounds_words(field.metadata)) if words)
    value = f"{name}:" if required else dump_line({name: to_jsonable_python(default, by_alias=True)})
    lines = [f"{value}  # {'required; ' if required else ''}{said}"]
    for path, held in inner:
        lines.append(f"  # in {'.'.join((name, *path))}:")
        lines += [f"  #   {line}" for line in _skeleton(held, None, above)]
    return lines


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
