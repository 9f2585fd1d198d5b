"""The demo: its data, its yardsticks, its stages.

May import: pipelines.config, pipelines.console, model.
"""
