"""One training step: optimizers, schedules, truncation, numerics. Its config loads no torch.

May import: model.errors, model.registry, model.settings, model.features, model.batches, model.network.
"""
