"""Parquet to fitted columns and row indexes, and to one rank's batches in the plan's order.

May import: pipelines.config, pipelines.cluster, pipelines.quarantine, pipelines.tasks, model.
"""
