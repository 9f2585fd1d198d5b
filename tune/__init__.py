"""Sweeps on Ray Tune: a config is changed, and the training of pipelines is called; never serve.

May import: pipelines.config, pipelines.cluster, pipelines.ingest, pipelines.supervision, pipelines.tracking,
pipelines.train, model.
"""
