"""dynamic-rnn's model: recurrent networks over Arrow sequences, in PyTorch. Knows no Ray, no HTTP.

Names are resolved when they are used (PEP 562), so that `import model` loads neither torch nor pyarrow.

May import: model.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.bundle.bundle import Bundle as Bundle
    from model.bundle.bundle import load_bundle as load_bundle
    from model.bundle.bundle import save_bundle as save_bundle
    from model.columns import bucketized_column as bucketized_column
    from model.columns import crossed_column as crossed_column
    from model.columns import embedding_column as embedding_column
    from model.columns import one_hot_column as one_hot_column
    from model.columns import real_valued_column as real_valued_column
    from model.columns import shared_embedding_columns as shared_embedding_columns
    from model.columns import sparse_column_with_hash_bucket as sparse_column_with_hash_bucket
    from model.columns import sparse_column_with_integerized_feature as sparse_column_with_integerized_feature
    from model.columns import sparse_column_with_keys as sparse_column_with_keys
    from model.columns import sparse_column_with_vocabulary_file as sparse_column_with_vocabulary_file
    from model.columns import weighted_sparse_column as weighted_sparse_column
    from model.config import ModelConfig as ModelConfig
    from model.estimator.arguments import EstimatorConfig as EstimatorConfig
    from model.estimator.arrays import SparseValues as SparseValues
    from model.estimator.estimator import DynamicRnnEstimator as DynamicRnnEstimator
    from model.estimator.monitors import Checkpoints as Checkpoints
    from model.estimator.monitors import EarlyStopping as EarlyStopping
    from model.estimator.monitors import Progress as Progress
    from model.features.labels import PredictionType as PredictionType
    from model.features.labels import ProblemType as ProblemType
    from model.network.cells import Cell as Cell
    from model.prediction_keys import PredictionKey as PredictionKey
    from model.prediction_keys import RNNKeys as RNNKeys
    from model.registry import register_cell as register_cell
    from model.registry import register_normalizer as register_normalizer
    from model.registry import register_optimizer as register_optimizer
    from model.scoring.scorer import Scorer as Scorer

_HOME = {
    "Bundle": "bundle.bundle",
    "load_bundle": "bundle.bundle",
    "save_bundle": "bundle.bundle",
    "bucketized_column": "columns.factories",
    "crossed_column": "columns.factories",
    "embedding_column": "columns.factories",
    "one_hot_column": "columns.factories",
    "real_valued_column": "columns.factories",
    "shared_embedding_columns": "columns.factories",
    "sparse_column_with_hash_bucket": "columns.factories",
    "sparse_column_with_integerized_feature": "columns.factories",
    "sparse_column_with_keys": "columns.factories",
    "sparse_column_with_vocabulary_file": "columns.factories",
    "weighted_sparse_column": "columns.factories",
    "ModelConfig": "config",
    "DynamicRnnEstimator": "estimator.estimator",
    "SparseValues": "estimator.arrays",
    "EstimatorConfig": "estimator.arguments",
    "PredictionKey": "prediction_keys",
    "RNNKeys": "prediction_keys",
    "PredictionType": "features.labels",
    "ProblemType": "features.labels",
    "Checkpoints": "estimator.monitors",
    "EarlyStopping": "estimator.monitors",
    "Progress": "estimator.monitors",
    "Cell": "network.cells",
    "register_cell": "registry",
    "register_normalizer": "registry",
    "register_optimizer": "registry",
    "Scorer": "scoring.scorer",
}
__all__ = tuple(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    with _no_collection():
        return getattr(importlib.import_module(f"model.{_HOME[name]}"), name)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Imports make nothing that a garbage collection would free, but each would walk all of torch's objects: 0.2 s."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
