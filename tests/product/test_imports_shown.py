"""Imports that people have been shown: those of the pages as they are, and those of 0.1.0, which their code holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SHOWN_BY_0_1_0 = """
from model import DynamicRnnEstimator, PredictionType, ProblemType, real_valued_column
from model.cells import Cell
from model.columns import (
    bucketized_column,
    crossed_column,
    embedding_column,
    one_hot_column,
    real_valued_column,
    shared_embedding_columns,
    sparse_column_with_hash_bucket,
    sparse_column_with_integerized_feature,
    sparse_column_with_keys,
    sparse_column_with_vocabulary_file,
    weighted_sparse_column,
)
from model.registry import register_cell, register_normalizer, register_optimizer
from pipelines.cluster import ray_session
from pipelines.predict import predict
from pipelines.prepare import prepare
from pipelines.prepare_settings import PrepareSettings
from serve.app import build_app
from serve.client import Client
"""
STATEMENT = re.compile(
    r"^ *(from (?:model|pipelines|tune|serve)\b[\w.]* import (?:\([^)]*\)|.*)"
    r"|import (?:model|pipelines|tune|serve)\b.*)$",
    re.MULTILINE,
)


def runs(code: str, root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stderr}"


def test_what_0_1_0_showed_can_still_be_imported(pytestconfig: pytest.Config) -> None:
    runs(SHOWN_BY_0_1_0, pytestconfig.rootpath)


def test_what_the_pages_show_can_be_imported(pytestconfig: pytest.Config) -> None:
    root = pytestconfig.rootpath
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md")), *sorted((root / "examples").iterdir())]
    found = [statement for page in pages for statement in STATEMENT.findall(page.read_text(encoding="utf-8"))]
    assert len(found) >= 6
    runs("\n".join(found), root)


def test_a_face_has_nothing_else() -> None:
    import pipelines.prepare

    with pytest.raises(AttributeError, match=r"module 'pipelines.prepare' has no attribute 'prepared'"):
        _ = pipelines.prepare.prepared
