"""A model of the original as a bundle of ours: variables and config in, bundle out. Needs no data.

What a checkpoint does not hold (which columns there are, and what they are made of) the config says; what the config
leaves open but the weights' shapes tell (a dimension, the number of classes) is taken from those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from model.bundle.bundle import Bundle, save_bundle
from model.columns import Column, Numeric, Vocabulary
from model.columns.config import column_name
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.features.fitted_columns import FittedColumns, iterate_leaves
from model.features.labels import FittedLabel, ProblemType
from model.features.stats import ColumnStats
from model.network.network import InputLayer, RnnNetwork
from model.scan.fit import fit_label
from model.scan.needed_columns import fit_needs_a_dataset
from model.settings import build, did_you_mean
from model.storage import list_names
from model.storage.filesystems import PathLike
from model.tf1.checkpoint import read_variables
from model.tf1.variables import BIASES, COLUMN_SCOPES, Piece, Reader, Variables, cell_scope, embeddings, pieces_of


class Held(NamedTuple):
    """What the data will hold, by column, where neither config nor checkpoint tells it.

    It only describes the bundle's inputs to those who ask: other data are encoded just the same.
    """

    several: Sequence[str] = ()  # lists of values an entry
    integers: Sequence[str] = ()  # integers in a hashed or crossed column


class Imported(NamedTuple):
    """A bundle, and what the user should know of how it came to be."""

    bundle: Bundle
    notes: tuple[str, ...]


def import_checkpoint(
    source: PathLike, output: PathLike, settings: Mapping[str, Any], *, where: str, held: Held | None = None
) -> Imported:
    """Reads a checkpoint (see `model.tf1.checkpoint.read_variables`) and writes the bundle."""
    if list_names(output):
        raise ConfigError(f"{output}: must be a new or empty directory, but holds files; name another")
    config, notes = import_config(settings, where=where)
    variables = read_variables(source)
    bundle, more = import_variables(variables, config, held=held, source=str(source))
    save_bundle(output, bundle)
    return Imported(bundle, notes + more)


def import_config(mapping: Mapping[str, Any], *, where: str) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model's config from a mapping of its settings, or of a run's with a `model` section; and notes.

    The original's `gru` is our `gru_reset_before`. ConfigError for faults.
    """
    section = mapping.get("model", mapping)
    if isinstance(section, Mapping) and section.get("cell_type") == "gru":
        config = build(ModelConfig, {**section, "cell_type": "gru_reset_before"}, where=where)
        return config, ("cell_type gru became gru_reset_before: the original's GRU resets before the product",)
    return build(ModelConfig, section, where=where), ()


def import_variables(
    variables: Variables, config: ModelConfig, *, held: Held | None = None, source: str = ""
) -> Imported:
    """A bundle that predicts what the original's model with these variables does.

    ConfigError where the config leaves open what only data could tell; CheckpointError where checkpoint and config do
    not fit.
    """
    held = held or Held()
    _refuse_to_learn(config)
    _check_held(config, held)
    reader = Reader(variables)
    pieces = list(pieces_of(reader, config))
    label = _label(reader, config)
    columns = _columns(reader, config, held)
    _check(pieces, reader, config, columns, label)
    step = reader.used("global_step")
    provenance = {"imported_from": source, "global_step": None if step is None else int(step)}
    bundle = Bundle(config, columns, label, {each.name: each.tensor for each in pieces}, provenance=provenance)
    return Imported(bundle, reader.notes())


# Columns and label, without data --------------------------------------------------------------------------------


def _refuse_to_learn(config: ModelConfig) -> None:
    needed = fit_needs_a_dataset(config.model_copy(update={"num_classes": 2}))
    if needed:
        raise ConfigError(
            f"{needed[0]} would have to be learned from data, but an import sees none; declare it as the original's "
            f"model had it"
        )


def _label(reader: Reader, config: ModelConfig) -> FittedLabel:
    """The label; the number of classes is that of the logits where the config leaves it open."""
    logits = len(reader.get(BIASES, None))
    if config.problem_type is ProblemType.CLASSIFICATION:
        held = max(logits, 2)  # two classes have one logit
        label = fit_label(config.model_copy(update={"num_classes": held}), ())
        declared = config.num_classes if isinstance(config.num_classes, int) else label.num_classes
        if not (declared == label.num_classes == held):
            raise CheckpointError(
                f"{BIASES!r} has {logits} values, the logits of {held} classes, but the config tells "
                f"{declared if declared != held else label.num_classes} classes"
            )
        return label
    if logits != 1:
        raise CheckpointError(f"{BIASES!r} has {logits} values, but linear_regression has one; is it a classification?")
    return fit_label(config, ())


def _columns(reader: Reader, config: ModelConfig, held: Held) -> FittedColumns:
    """The columns as fitted; the dimension of numbers that the config leaves open is what the kernel has room for."""
    inputs = _input_width(reader, config)
    numeric = [(key, leaf.dimension) for _, key, leaf in iterate_leaves(config.columns) if isinstance(leaf, Numeric)]
    known = {key: dimension or 1 for key, dimension in numeric}
    fitted = _fitted(config, known, held)
    wider = {
        key: _width(_fitted(config, known | {key: 2}, held)) - _width(fitted)
        for key, dimension in numeric
        if dimension is None
    }
    unknown = [key for key, more in wider.items() if more]  # without those that are only crossed
    missing = inputs - _width(fitted)
    if len(unknown) == 1 and missing > 0:
        fitted = _fitted(config, known | {unknown[0]: 1 + missing // wider[unknown[0]]}, held)
    if _width(fitted) != inputs:
        raise CheckpointError(_width_fault(reader, config, fitted, inputs, unknown))
    return fitted


def _check_held(config: ModelConfig, held: Held) -> None:
    known = [leaf.name for _, _, leaf in iterate_leaves(config.columns) if not isinstance(leaf, Numeric)]
    for name in (*held.several, *held.integers):
        if name not in known:
            raise ConfigError(
                f"{name!r} must be a categorical column of the config, for something is said of its values"
                f"{did_you_mean(name, known)}"
            )


def _fitted(config: ModelConfig, dimensions: Mapping[str, int], held: Held) -> FittedColumns:
    stats = {}
    for _, key, leaf in iterate_leaves(config.columns):
        if isinstance(leaf, Numeric):
            stats[key] = ColumnStats(count=np.zeros(dimensions[key]))
        else:
            stats[key] = ColumnStats(several=leaf.name in held.several, integers=leaf.name in held.integers)
    return FittedColumns.fit(config.columns, stats)


def _width(columns: FittedColumns) -> int:
    """D, the width of the network's input."""
    with torch.device("meta"):
        return InputLayer(columns).width


def _input_width(reader: Reader, config: ModelConfig) -> int:
    """D as the first layer's kernel has it."""
    return len(reader.get(_first_kernel(reader, config), None, None)) - config.num_units[0]


def _first_kernel(reader: Reader, config: ModelConfig) -> str:
    scope = cell_scope(reader, config, 0)
    return f"{scope}/gates/kernel" if config.cell_type == "gru_reset_before" else f"{scope}/kernel"


def _width_fault(
    reader: Reader, config: ModelConfig, columns: FittedColumns, inputs: int, unknown: Sequence[str]
) -> str:
    with torch.device("meta"):
        layer = InputLayer(columns)
    ordered: list[Column] = [*config.columns.ordered("sequence"), *config.columns.ordered("context")]
    parts = [*layer.represents("sequence"), *layer.represents("context")]
    told = ", ".join(f"{column_name(c)} {part.width}" for c, part in zip(ordered, parts, strict=True))
    rows = inputs + config.num_units[0]
    fault = (
        f"variable {_first_kernel(reader, config)!r} has {rows} rows, which with num_units {config.num_units[0]} is an "
        f"input of {inputs} values a step, but the columns make {layer.width} ({told})"
    )
    names = ", ".join(repr(key.partition(":")[2]) for key in unknown)
    return f"{fault}; declare the dimension of {names}" if len(unknown) > 1 else fault


# Does it fit? ---------------------------------------------------------------------------------------------------


def _check(
    pieces: Sequence[Piece], reader: Reader, config: ModelConfig, columns: FittedColumns, label: FittedLabel
) -> None:
    """CheckpointError where a tensor has another shape than the network's, or where a weight would be left over."""
    with torch.device("meta"):
        own = RnnNetwork(config, columns, label).state_dict()
    for piece in pieces:
        if piece.tensor.shape != own[piece.name].shape:
            raise CheckpointError(
                f"variable {piece.variable!r} makes {piece.name} of shape {tuple(piece.tensor.shape)}, but the config "
                f"builds {tuple(own[piece.name].shape)}{_table_hint(piece, config)}"
            )
    assert {piece.name for piece in pieces} == own.keys(), "each tensor of the network has its piece"
    scopes = ("rnn/", "fully_connected/", *(f"{scope}/" for scope in COLUMN_SCOPES.values()))
    left = [name for name in reader.untaken() if name.startswith(scopes)]
    if left:
        raise CheckpointError(
            f"variable {left[0]!r} is part of the original's model, but the config builds nothing of it; check "
            f"num_units and columns"
        )


def _table_hint(piece: Piece, config: ModelConfig) -> str:
    """What is often wrong with a table: the original had no bucket for unknown values."""
    for group, place, column in embeddings(config):
        source = column.source
        if piece.name == f"inputs.{group}.{place}.weight" and isinstance(source, Vocabulary) and source.keys:
            more = len(source.keys) + source.oov_buckets - len(piece.tensor)
            if source.oov_buckets and more == source.oov_buckets:
                return f"; declare oov_buckets: 0 for column {source.name!r}, as the original has it"
            return f" for the {len(source.keys)} keys of column {source.name!r}"
    return ""
