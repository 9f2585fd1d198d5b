"""A report on data before training, and a proposed run.

May import: pipelines.config, pipelines.report, pipelines.tasks, model.
"""
