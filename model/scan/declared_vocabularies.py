"""Vocabularies from files while data are scanned: their keys stand in the declaration, so that values are counted.

Read once, by whoever starts the scan; its tasks need not reach the files. Knows no torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from model.config import ModelConfig
from model.features.vocabulary_file import file_keys
from model.tables.keys import key_type
from model.tables.schema_agreement import value_type


def with_file_keys(config: ModelConfig, types: Mapping[str, pa.DataType]) -> ModelConfig:
    """The config to scan by, where columns have these `types`. ConfigError as `file_keys`."""
    return ModelConfig.model_validate(_declared(config.model_dump(mode="json"), types))


def _declared(part: Any, types: Mapping[str, pa.DataType]) -> Any:
    if isinstance(part, list):
        return [_declared(each, types) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") != "vocabulary" or part["file"] is None:
        return {name: _declared(each, types) for name, each in part.items()}
    kind = value_type(types.get(part["name"], pa.null()))
    keys = file_keys(part["file"], integers=key_type(kind) == pa.int64(), most=part["max_keys"])
    return part | {"keys": keys, "file": None, "max_keys": None, "default_value": -1}
