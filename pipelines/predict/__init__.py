"""Batch prediction, Parquet to Parquet, with states from day to day; chain_*: rows of one key one after another.

May import: pipelines.quarantine, pipelines.tasks, model.
"""
