"""DynamicRnnEstimator: the original's class on one machine; the top of model/.

May import: model.errors, model.prediction_keys, model.storage, model.settings, model.registry, model.tables,
model.columns, model.state, model.features, model.config, model.batches, model.scan, model.network, model.training,
model.bundle, model.scoring, model.export.
"""
