"""The torch modules: column layers, cells, heads, dropout; a batch to logits and the next state.

May import: model.errors, model.registry, model.state, model.storage, model.columns, model.features, model.config,
model.batches.
"""
