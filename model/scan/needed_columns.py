"""Which columns of the data a model needs, and what must be read of them before it can be fitted."""

from __future__ import annotations

from model.columns import Crossed, Weighted, data_columns
from model.columns.config import source_of
from model.config import ModelConfig
from model.features.fitted_columns import GROUPS, iterate_sources
from model.features.labels import ProblemType


def fit_needs_a_dataset(config: ModelConfig) -> list[str]:
    """What is learned from all rows, by name; empty where a stream will do."""
    from model.columns.config import needs_training_data

    found = ["num_classes='auto'"] if needs_label_values(config) else []
    if config.standardize_label:
        found.append("the label's scale")
    return found + needs_training_data(config.columns)


def read_columns(config: ModelConfig, *, labelled: bool = True) -> list[str]:
    """The data columns a model reads: its inputs and, to train or evaluate, label and weight."""
    names = [name for group in GROUPS for name in config.columns.data_columns(group)]
    if labelled:
        names += [name for name in (config.label, config.weight) if name is not None]
    return list(dict.fromkeys(names))


def optional_columns(config: ModelConfig) -> list[str]:
    """The columns that may be missing in some of the files, as nulls: those whose nulls the model declares to bear.

    These are numbers with `missing: mean` or a number, and categories, where a null is no value; not those that are
    weighted or crossed.
    """
    tolerant: dict[str, bool] = {}
    for _, _, column in iterate_sources(config.columns):
        source = source_of(column)
        bears = not isinstance(source, Weighted | Crossed) and getattr(source, "missing", None) != "error"
        for name in data_columns(source):
            tolerant[name] = tolerant.get(name, True) and bears
    return [name for name, bears in tolerant.items() if bears and name not in (config.label, config.weight)]


def needs_label_values(config: ModelConfig) -> bool:
    """Whether the classes must be learned from the training labels."""
    classification = config.problem_type is ProblemType.CLASSIFICATION
    return classification and config.classes is None and config.num_classes == "auto"
