"""A bundle as ONNX and torch.export graphs that carry the state.

May import: model.errors, model.prediction_keys, model.state, model.storage, model.columns, model.features,
model.batches, model.network, model.bundle.
"""
