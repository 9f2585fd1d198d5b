"""Followers of a training (status file, TensorBoard, MLflow), what they are told, and the list of runs.

May import: pipelines.config, model.
"""
