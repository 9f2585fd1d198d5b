"""Weights of the original, by its variable names, as weights of ours. Pure renaming, cutting and transposing.

The original keeps one kernel [D + H, …] a layer: the rows of the input x first, then those of the state h. Ours are
`weight_ih` and `weight_hh` with the gates' rows one behind the other, in torch's order. D input width, H units.
Knows no checkpoint files (`model.tf1.checkpoint` reads them) and no bundles (`model.tf1.import_bundle` makes them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from model.columns import Bucketized, Crossed, Embedding, Weighted
from model.columns.config import column_name
from model.config import ModelConfig
from model.errors import CheckpointError
from model.features.fitted_columns import Group
from model.settings import did_you_mean

Variables = Mapping[str, np.ndarray]
Tensors = dict[str, torch.Tensor]

# The original's cells by our names, and the scopes of their variables: the class that the name stands for, then others
# that compute the same.
CELL_SCOPES = {
    "basic_rnn": ("basic_rnn_cell",),
    "lstm": ("lstm_cell", "basic_lstm_cell"),
    "gru_reset_before": ("gru_cell",),
}
COLUMN_SCOPES: dict[Group, str] = {
    "sequence": "sequence_input_from_feature_columns",
    "context": "input_from_feature_columns",
}
LSTM_ORDER = (0, 2, 1, 3)  # the original's i, j, f, o as torch's i, f, g, o
OLD_NAMES = {"kernel": "weights", "bias": "biases"}  # before TensorFlow 1.2
WEIGHTS, BIASES = "fully_connected/weights", "fully_connected/biases"


class Piece(NamedTuple):
    """One of our tensors and the variable it was cut from."""

    name: str
    tensor: torch.Tensor
    variable: str


class Reader:
    """Variables by name and expected shape; None in a shape is any size. Remembers which were taken."""

    def __init__(self, variables: Variables) -> None:
        self.variables = variables
        self.taken: set[str] = set()

    def name_of(self, *candidates: str) -> str:
        """The first candidate that is there; CheckpointError where none is."""
        for name in candidates:
            head, _, last = name.rpartition("/")
            for each in (name, f"{head}/{OLD_NAMES.get(last, last)}"):
                if each in self.variables:
                    return each
        name, known = candidates[0], [each for each in self.variables if not is_training(each)]
        beside = [each for each in known if each.split("/")[0] == name.split("/")[0]]
        hint = f"; there are {', '.join(sorted(beside)[:4])}" if beside else did_you_mean(name, known)
        raise CheckpointError(f"variable {name!r} must be there, but is not{hint}")

    def get(self, name: str, *shape: int | None, why: str = "") -> np.ndarray:
        """A variable as float32; CheckpointError where it is missing or its shape is another."""
        name = self.name_of(name)
        self.taken.add(name)
        array = np.asarray(self.variables[name], np.float32)
        fits = len(shape) == array.ndim and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(f"variable {name!r} must have shape ({wanted}){why}, but has {array.shape}")
        return array

    def used(self, name: str) -> np.ndarray | None:
        """A variable that may be missing."""
        return self.variables.get(name)

    def untaken(self) -> list[str]:
        """Variables that nothing was made of, without those of training."""
        return sorted(name for name in self.variables if name not in self.taken and not is_training(name))

    def notes(self) -> tuple[str, ...]:
        """What was left aside, and is none of training's."""
        left = self.untaken()
        return (f"left aside: {', '.join(left)}",) if left else ()


def is_training(name: str) -> bool:
    """Whether a variable only serves the training: the step, the learning rate, optimizer slots."""
    return name == "global_step" or "OptimizeLoss" in name.split("/")


# Weights --------------------------------------------------------------------------------------------------------


def pieces_of(reader: Reader, config: ModelConfig) -> Iterator[Piece]:
    if config.cell_type not in CELL_SCOPES:
        raise CheckpointError(
            f"the original's cells are {', '.join(CELL_SCOPES)}, but cell_type is {config.cell_type!r}"
            + ("; its GRU is gru_reset_before" if config.cell_type == "gru" else "")
        )
    yield from _tables(reader, config)
    for layer, units in enumerate(config.num_units):
        scope = cell_scope(reader, config, layer)
        arrays = _cell(reader, scope, config.cell_type, units)
        for name, array in zip(("weight_ih", "weight_hh", "bias"), arrays, strict=True):
            yield Piece(f"cell.{layer}.{name}", _tensor(array), scope)
    why = f" for num_units {config.num_units[-1]}"
    yield Piece("projection.weight", _tensor(reader.get(WEIGHTS, config.num_units[-1], None, why=why).T), WEIGHTS)
    yield Piece("projection.bias", _tensor(reader.get(BIASES, None)), BIASES)


def _tables(reader: Reader, config: ModelConfig) -> Iterator[Piece]:
    had: set[str | None] = set()
    for group, place, column in embeddings(config):
        if column.table is not None and column.table in had:
            continue  # a shared table stands under the name of its first column alone
        had.add(column.table)
        name = _shared_table(reader, config, column) if column.table is not None else None
        name = name or f"{COLUMN_SCOPES[group]}/{_original_name(column)}_embedding/weights"
        table = reader.get(name, None, column.dimension, why=f" for column {column_name(column)!r}")
        yield Piece(f"inputs.{group}.{place}.weight", _tensor(table), name)


def _shared_table(reader: Reader, config: ModelConfig, column: Embedding) -> str:
    """A shared table's variable lies in the scope of the column that was built first."""
    sharing = [(group, each) for group, _, each in embeddings(config) if each.table == column.table]
    scopes = [f"{COLUMN_SCOPES[group]}/{_original_name(each)}_shared_embedding/" for group, each in sharing]
    found = [name for name in sorted(reader.variables) if name.startswith(tuple(scopes))]
    return found[0] if found else f"{scopes[0]}{column.table}"


def _original_name(column: Embedding) -> str:
    """The original's name of what is embedded."""
    source = column.source
    if isinstance(source, Weighted):
        return f"{source.source.name}_weighted_by_{source.weights}"
    if isinstance(source, Crossed):
        names = (f"{p.source.name}_bucketized" if isinstance(p, Bucketized) else p.name for p in source.parts)
        return "_X_".join(names)
    return source.name


def embeddings(config: ModelConfig) -> Iterator[tuple[Group, int, Embedding]]:
    groups: tuple[Group, ...] = ("sequence", "context")
    for group in groups:
        for place, column in enumerate(config.columns.ordered(group)):
            if isinstance(column, Embedding):
                yield group, place, column


def cell_scope(reader: Reader, config: ModelConfig, layer: int) -> str:
    scope = f"rnn/multi_rnn_cell/cell_{layer}" if len(config.num_units) > 1 else "rnn"
    last = "gates/kernel" if config.cell_type == "gru_reset_before" else "kernel"
    candidates = [f"{scope}/{cell}/{last}" for cell in CELL_SCOPES[config.cell_type]]
    return reader.name_of(*candidates).removesuffix("/weights").removesuffix("/kernel").removesuffix("/gates")


def _cell(reader: Reader, scope: str, cell_type: str, units: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weight_ih, weight_hh, bias) of one layer."""
    why = f" for num_units {units}"
    if cell_type == "gru_reset_before":  # gates r and u, then the candidate, as in ours
        parts = (("gates", 2 * units), ("candidate", units))
        length = len(reader.get(f"{scope}/gates/kernel", None, 2 * units, why=why))
        kernels = [reader.get(f"{scope}/{part}/kernel", length, width, why=why) for part, width in parts]
        kernel = np.concatenate(kernels, 1)
        bias = np.concatenate([reader.get(f"{scope}/{part}/bias", width, why=why) for part, width in parts])
    else:
        order = LSTM_ORDER if cell_type == "lstm" else (0,)
        columns = np.concatenate([np.arange(gate * units, (gate + 1) * units) for gate in order])
        kernel = reader.get(f"{scope}/kernel", None, len(columns), why=why)[:, columns]
        bias = reader.get(f"{scope}/bias", len(columns), why=why)[columns]
    inputs = len(kernel) - units
    return kernel[:inputs].T, kernel[inputs:].T, bias


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C"))  # a copy: shared tables become tensors of their own
