"""Metric sums of a table: rows sorted by length, cut into batches of bounded padding, each counted once.

Knows no files and no Ray; estimator, workers and evaluation actors sum the same way.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from model.batches.collate import bounded, collate
from model.features.fitted_columns import EncodedRows, FittedColumns, encode_rows
from model.features.labels import FittedLabel
from model.network.network import RnnNetwork
from model.scoring.metrics import MetricState, batch_state, merged


def table_metrics(network: RnnNetwork, columns: FittedColumns, label: FittedLabel, table: pa.Table) -> MetricState:
    """The sums of `model.scoring.metrics` over a table's rows. DataError's row is the row in the table."""
    rows = encode_rows(table, columns, label)
    rows = rows.take(np.argsort(rows.lengths_B, kind="stable"))
    return merged(_sums(network, label, part) for part in bounded(rows))


def _sums(network: RnnNetwork, label: FittedLabel, rows: EncodedRows) -> MetricState:
    batch = collate(rows).to(network.device, network.dtype)
    with torch.inference_mode():
        return batch_state(label, network(batch, keep_state=False).logits, batch)
