"""Charts, pages and numbers for people; the report of a training.

May import: pipelines.config, pipelines.ingest, model.
"""
