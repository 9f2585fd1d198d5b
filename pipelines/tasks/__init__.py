"""Passes over numbered items by Ray Data's tasks or actors, or in this process; results and the user's mistakes as
JSON, arrays as bytes.

May import: pipelines.cluster, model.
"""
