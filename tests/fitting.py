"""What tests need of fitting that the product does another way: statistics without its checks, and bare weights."""

from __future__ import annotations

import pyarrow as pa

from model.columns import ColumnsConfig
from model.config import ModelConfig
from model.errors import DataError
from model.features.fit import entry_to_row
from model.features.fitted_columns import iterate_leaves
from model.features.sequence_table import SequenceTable
from model.features.stats import ColumnStats, stats_of
from model.tf1.variables import Reader, Tensors, Variables, pieces_of


def column_stats(table: pa.Table, columns: ColumnsConfig) -> dict[str, ColumnStats]:
    """Statistics of one fragment by source key, for `FittedColumns.fit` after merging in fragment order."""
    rows = SequenceTable(table, columns)
    stats, quantiles = {}, columns.learned_boundaries()
    for group, key, leaf in iterate_leaves(columns):
        entries, offsets = rows.entries(leaf.name, group)
        try:
            stats[key] = stats_of(leaf, entries, quantiles=leaf.name in quantiles)
        except DataError as error:
            raise entry_to_row(error, offsets) from error.__cause__
    return stats


def weights_from_variables(variables: Variables, config: ModelConfig) -> Tensors:
    """The variables of the original's model as the weights of a network that `config` builds.

    What is linear in the weights, such as gradients, maps the same way.
    """
    return {piece.name: piece.tensor for piece in pieces_of(Reader(variables), config)}
