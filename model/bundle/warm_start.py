"""Training that begins with a bundle's weights: on other rows, in the bundle's columns and classes.

What the bundle learned of its columns stays: means, boundaries, ids of keys. Keys that only the new rows have are
refused, or unknown as they are in scoring, or added: ids behind those of the bundle, so that its rows of tables move at
most behind them (out-of-vocabulary buckets do), and what is new begins with the seed's weights.
V ids of a vocabulary, D features of the network's input. Knows no files, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from model.bundle.bundle import Bundle, Tensors, bundle_of, load_weights
from model.config import ModelConfig, network_settings, there_and_here
from model.errors import ConfigError, DataError
from model.features.categorical import FittedVocabulary
from model.features.combined import FittedWeighted
from model.features.fit import Fitted
from model.features.fitted_columns import GROUPS, FittedColumns
from model.features.labels import FittedLabel, weights_in_order
from model.features.numeric import FittedNumeric
from model.network.network import RnnNetwork, build_network

NewVocabulary = Literal["refuse", "unknown", "add"]
_BUILT_IN = ("basic_rnn", "lstm", "gru", "gru_reset_before")
_EXAMPLES = 5


def started(
    bundle: Bundle,
    config: ModelConfig,
    columns: FittedColumns,
    label: FittedLabel,
    *,
    seed: int,
    new_vocabulary: NewVocabulary = "refuse",
) -> Bundle:
    """The bundle to begin with; `columns` and `label` are what the new rows alone would be fitted to.

    ConfigError where the config means another network; DataError for keys that are refused and for new classes.
    """
    # Declared classes may differ: those that the new rows then have are held against the bundle's, in `_label`.
    differ = [name for name in network_settings(bundle.config, config) if name != "classes"]
    if differ:
        told = there_and_here(differ, bundle.config, config)
        raise ConfigError(f"train.warm_start: the model must be that of the bundle, but {told}")
    kept = _columns(bundle.columns, columns, new_vocabulary)
    network = build_network(config, kept, _label(bundle.label, label, config), seed)
    load_weights(network, _moved(bundle, network, kept))
    return bundle_of(network, kept, _label(bundle.label, label, config))


# Columns and label --------------------------------------------------------------------------------------------------


def _columns(held: FittedColumns, fresh: FittedColumns, new_vocabulary: NewVocabulary) -> FittedColumns:
    """The bundle's columns with the keys that are added."""
    sources = {key: _source(fitted, fresh.sources[key], new_vocabulary) for key, fitted in held.sources.items()}
    return held.model_copy(update={"sources": sources})


def _source(held: Fitted, fresh: Fitted, new_vocabulary: NewVocabulary) -> Fitted:
    if isinstance(held, FittedNumeric) and isinstance(fresh, FittedNumeric):
        if held.dimension != fresh.dimension:
            raise DataError(
                f"must have {held.dimension} values a step as in the bundle, but has {fresh.dimension}",
                column=held.name,
            )
        return held
    if isinstance(held, FittedWeighted) and isinstance(fresh, FittedWeighted):
        inner = _source(held.source, fresh.source, new_vocabulary)
        return held.model_copy(update={"source": inner})
    if not isinstance(held, FittedVocabulary) or not isinstance(fresh, FittedVocabulary):
        return held
    known = set(held.keys)
    new = tuple(key for key in fresh.keys if key not in known)
    if new and new_vocabulary == "refuse":
        raise DataError(
            f"must hold the keys that the bundle of train.warm_start knows, but {_count(new)} new: {_some(new)}; "
            f"set train.new_vocabulary to add (trained from new), or to unknown (as in scoring)",
            column=held.name,
        )
    keys = held.keys + new if new_vocabulary == "add" else held.keys
    return held.model_copy(update={"keys": keys, "several": held.several or fresh.several})


def _label(held: FittedLabel, fresh: FittedLabel, config: ModelConfig) -> FittedLabel:
    """The bundle's label under the names and weights of the new config. DataError for classes it does not know."""
    new = [value for value in fresh.class_values if value not in held.class_values]
    if new:
        raise DataError(
            f"must hold the classes of the bundle of train.warm_start, but {_count(new)} new: {_some(new)}; a model of "
            f"more classes must be trained from the start",
            column=config.label,
        )
    weights = weights_in_order(config.class_weights, held.class_values)
    return held.model_copy(update={"name": config.label, "weight": config.weight, "class_weights": weights})


def _count(new: Sequence[object]) -> str:
    return f"{len(new)} are" if len(new) > 1 else "one is"


def _some(new: Sequence[object]) -> str:
    listed = ", ".join(repr(value) for value in new[:_EXAMPLES])
    return listed if len(new) <= _EXAMPLES else f"{listed}, …"


# Weights ------------------------------------------------------------------------------------------------------------


def _moved(bundle: Bundle, network: RnnNetwork, columns: FittedColumns) -> Tensors:
    """The bundle's tensors in the shapes of the grown network; what is new keeps that network's weights."""
    tensors, fresh = dict(bundle.tensors), network.state_dict()
    features: list[torch.Tensor] = []
    start, grows = 0, False
    for group in GROUPS:
        for i, part in enumerate(network.inputs.represents(group)):
            ids, name = (
                _new_ids(bundle.columns.sources[part.key], columns.sources[part.key]),
                f"inputs.{group}.{i}.weight",
            )
            width = torch.arange(part.width)
            if ids is not None and part.combiner == "one_hot":
                width, grows = ids, True
            elif ids is not None and name in tensors:
                tensors[name] = fresh[name].index_copy(0, ids, tensors[name])
            features.append(start + width)
            start += part.width
    if grows:
        name = "cell.0.weight_ih"
        if bundle.config.cell_type not in _BUILT_IN:
            raise ConfigError(
                f"train.new_vocabulary add widens the input of a one-hot column, which cell_type "
                f"{bundle.config.cell_type} (not a built-in one) does not say how to follow; use an embedding"
            )
        tensors[name] = fresh[name].index_copy(1, torch.cat(features), tensors[name])
    return tensors


def _new_ids(held: Fitted, grown: Fitted) -> torch.Tensor | None:
    """Where each of the bundle's ids is now; None where all are where they were."""
    if isinstance(held, FittedWeighted) and isinstance(grown, FittedWeighted):
        return _new_ids(held.source, grown.source)
    if not isinstance(held, FittedVocabulary) or not isinstance(grown, FittedVocabulary) or held.keys == grown.keys:
        return None
    ids = torch.arange(held.buckets)
    return torch.where(ids < len(held.keys), ids, ids + len(grown.keys) - len(held.keys))
