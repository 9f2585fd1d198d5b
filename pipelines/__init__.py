"""The distributed pipeline on Ray Data and Ray Train; never tune or serve.

May import: pipelines, model.
"""
