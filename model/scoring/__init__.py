"""What a trained model says of rows, and how good that is.

May import: model.errors, model.state, model.storage, model.tables, model.columns, model.features, model.config,
model.batches, model.network, model.bundle.
"""
