"""Heads: logits to losses and predictions, for the four combinations of problem and prediction type. Pure functions.

B sequences, T steps, K logits, C classes; [...] is [B, T] or [B]. Losses are unreduced; whoever sums them masks
with the batch's weights. Knows no network, no data formats.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from model.features.labels import FittedLabel, ProblemType

Tensor = torch.Tensor


def loss(label: FittedLabel, logits: Tensor, labels: Tensor) -> Tensor:
    """The original's losses, unreduced [...], from logits [..., K] and labels [...].

    Regression: (score − y)², without ½, in units of the label's scale. Two classes: sigmoid cross-entropy of the one
    logit. More: softmax cross-entropy.
    """
    if label.problem_type is ProblemType.LINEAR_REGRESSION:
        return (logits.squeeze(-1) - _standardized(label, labels)) ** 2
    if label.num_classes == 2:
        return functional.binary_cross_entropy_with_logits(
            logits.squeeze(-1), labels.to(logits.dtype), reduction="none"
        )
    flat = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def predict(label: FittedLabel, logits: Tensor, *, probabilities: bool) -> dict[str, Tensor]:
    """`scores` [...] for regression; else `classes` int64 [...] and, if asked for, `probabilities` [..., C]."""
    if label.problem_type is ProblemType.LINEAR_REGRESSION:
        return {"scores": scores(label, logits)}
    if not probabilities:
        return {"classes": class_ids(label, logits)}
    chances = class_probabilities(label, logits)
    return {"classes": chances.argmax(-1), "probabilities": chances}


def scores(label: FittedLabel, logits: Tensor) -> Tensor:
    """Regression: predictions [...] in the label's own units."""
    predicted = logits.squeeze(-1)
    return predicted if (label.shift, label.scale) == (0, 1) else predicted * label.scale + label.shift


def _standardized(label: FittedLabel, labels: Tensor) -> Tensor:
    return labels if (label.shift, label.scale) == (0, 1) else (labels - label.shift) / label.scale


def class_ids(label: FittedLabel, logits: Tensor) -> Tensor:
    """The likeliest class, int64 [...]; the lowest id wins a tie."""
    return (logits.squeeze(-1) > 0).long() if label.num_classes == 2 else logits.argmax(-1)


def class_probabilities(label: FittedLabel, logits: Tensor) -> Tensor:
    """Probabilities [..., C]; two classes give [1 − p, p]."""
    if label.num_classes == 2:
        logits = torch.cat([torch.zeros_like(logits), logits], -1)
    return torch.softmax(logits, -1)
