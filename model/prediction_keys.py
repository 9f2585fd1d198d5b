"""Names of the original's inputs and predictions, as its users import them. Knows nothing and loads nothing.

May import: nothing.
"""

from __future__ import annotations


class RNNKeys:
    """Keys of the features that are no columns, and of predictions."""

    SEQUENCE_LENGTH_KEY = "sequence_length"
    STATE_PREFIX = "rnn_cell_state"
    CLASSES_KEY = "classes"
    PROBABILITIES_KEY = "probabilities"


class PredictionKey:
    """Keys of what `predict` returns, beside `rnn_cell_state_0` …"""

    CLASSES = "classes"
    PROBABILITIES = "probabilities"
    SCORES = "scores"
