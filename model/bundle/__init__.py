"""A model as files; the directory of a run; a new model that begins with a bundle.

May import: model.errors, model.settings, model.state, model.storage, model.features, model.config, model.network.
"""
