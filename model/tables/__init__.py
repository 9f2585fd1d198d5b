"""Arrow and Parquet without their meaning: lists as offsets, row groups, filters, columns in paths.

May import: model.errors, model.settings, model.storage.
"""
