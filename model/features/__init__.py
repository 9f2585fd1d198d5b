"""What was learned of columns and labels, and how entries become numbers. Knows no torch.

May import: model.errors, model.registry, model.settings, model.storage, model.tables, model.columns.
"""
