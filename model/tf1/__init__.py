"""Checkpoints of the original to bundles; TensorFlow's file formats.

May import: model.errors, model.settings, model.storage, model.columns, model.features, model.config, model.scan,
model.network, model.bundle.
"""
