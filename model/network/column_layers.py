"""Representations as modules: one column's encoded values to its part of the network's input.

B sequences, T padded steps, D values a step, K ids a step, V ids of a table. Knows no batches, no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from model.columns import Bucketized, Column, Embedding, Numeric, OneHot, source_key
from model.columns.config import source_of
from model.features.encoded import weights_key
from model.features.fitted_columns import FittedColumns
from model.features.numeric import FittedNumeric

Tensor = torch.Tensor


class ColumnLayer(nn.Module):
    """One column's encoded values as network input: floats [B, (T,) D], or ids [B, (T,) K] to [B, (T,) width].

    `shared` holds the tables that columns before this one have named; its own is added.
    """

    boundaries: Tensor

    def __init__(self, column: Column, columns: FittedColumns, shared: dict[str, nn.Parameter] | None = None) -> None:
        super().__init__()
        self.key = source_key(source_of(column))
        fitted = columns.sources[self.key]
        self.combiner: str | None = None
        self.max_norm: float | None = None
        self.shares = False  # its table is that of a column before it
        if isinstance(column, Numeric | Bucketized):
            assert isinstance(fitted, FittedNumeric)
            self.width, self.dimension = fitted.width, fitted.dimension
            if isinstance(column, Bucketized):
                edges = torch.tensor(fitted.edges(column.boundaries), dtype=torch.float32)
                self.combiner, self.width = "bucketized", fitted.width + fitted.dimension * len(edges)
                self.register_buffer("boundaries", edges, persistent=False)
            return
        assert not isinstance(fitted, FittedNumeric)
        self.buckets = fitted.buckets
        if isinstance(column, OneHot):
            self.combiner, self.width = "one_hot", fitted.buckets
            return
        self.combiner, self.width, self.max_norm = column.combiner, column.dimension, column.max_norm
        self.shares = shared is not None and column.table in shared
        self.weight = _table(column, fitted.buckets, {} if shared is None else shared)

    @property
    def table(self) -> nn.Parameter | None:
        """The embedding table [V, width], if this column has one."""
        return self.weight if hasattr(self, "weight") else None

    def read(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Network input from a batch's tensors."""
        return self.forward(tensors[self.key], dtype, tensors.get(weights_key(self.key)))

    def rows_read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The table's rows that these tensors look up, −1 for none: those the combiner leaves out are not."""
        ids, weights = tensors[self.key], tensors.get(weights_key(self.key))
        return ids if weights is None or self.combiner == "sum" else ids.masked_fill(weights <= 0, -1)

    def forward(self, values: Tensor, dtype: torch.dtype, weights: Tensor | None = None) -> Tensor:
        if self.combiner is None:
            return values
        if self.combiner == "bucketized":
            return self._intervals(values, dtype)
        valid = (values >= 0).to(dtype)
        if weights is not None:
            valid = valid * weights.to(dtype)
        if self.combiner == "one_hot":
            counts = values.new_zeros(*values.shape[:-1], self.width, dtype=dtype)
            return counts.scatter_add_(-1, values.clamp(min=0), valid)
        vectors = self._vectors(values)
        if weights is not None:
            return self._weighted(vectors, valid)
        vectors = vectors * valid.unsqueeze(-1)
        if values.shape[-1] == 1:
            return vectors.squeeze(-2)
        count = valid.sum(-1, keepdim=True).clamp(min=1)
        total = vectors.sum(-2)
        return total if self.combiner == "sum" else total / (count if self.combiner == "mean" else count.sqrt())

    def _vectors(self, ids: Tensor) -> Tensor:
        """The table's rows [..., K, width], scaled down to `max_norm` where they exceed it; the table stays."""
        vectors = nn.functional.embedding(ids.clamp(min=0), self.weight)
        if self.max_norm is None:
            return vectors
        squares = vectors.square().sum(-1, keepdim=True)
        norm = torch.where(squares > 0, squares, 1.0).sqrt()  # the root has no derivative at 0
        return vectors * (self.max_norm / norm.clamp(min=self.max_norm))

    def _weighted(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """Σ w·e, over Σ w or √Σ w² of the positive weights unless it is the sum; vectors [..., K, width]."""
        if self.combiner == "sum":
            return (vectors * weights.unsqueeze(-1)).sum(-2)
        weights = weights.clamp(min=0)
        total = (vectors * weights.unsqueeze(-1)).sum(-2)
        if self.combiner == "mean":
            divisor = weights.sum(-1, keepdim=True)
        else:
            divisor = weights.square().sum(-1, keepdim=True).sqrt()
        return total / torch.where(divisor > 0, divisor, 1.0)

    def _intervals(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Floats [..., D] to one-hot [..., D · (boundaries + 1)]: each number's interval, its lower edge included.

        Indicators behind the values stay as they are.
        """
        numbers, indicators = values[..., : self.dimension], values[..., self.dimension :]
        interval = torch.bucketize(numbers.contiguous(), self.boundaries.to(values.dtype), right=True)
        one_hot = nn.functional.one_hot(interval, len(self.boundaries) + 1).flatten(-2).to(dtype)
        return one_hot if not indicators.shape[-1] else torch.cat([one_hot, indicators.to(dtype)], -1)


def _table(column: Embedding, buckets: int, shared: dict[str, nn.Parameter]) -> nn.Parameter:
    """The column's vectors [V, width]: new, or those of the table that it names."""
    if column.table is not None and column.table in shared:
        return shared[column.table]
    weight = nn.Parameter(torch.empty(buckets, column.dimension), requires_grad=column.trainable)
    # The original's: truncated normal with stddev 1/sqrt(vocabulary), cut at two of them.
    deviation = 1 / math.sqrt(buckets)
    nn.init.trunc_normal_(weight, 0.0, deviation, -2 * deviation, 2 * deviation)
    if column.table is not None:
        shared[column.table] = weight
    return weight
