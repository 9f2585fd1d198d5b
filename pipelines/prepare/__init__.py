"""Event tables to sequences: an external sort by key, cut and written.

May import: pipelines.quarantine, pipelines.tasks, model.
"""
