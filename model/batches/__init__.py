"""A table to encoded ragged rows, to a padded batch; and the plan: which rows form batch k. Only collate.py loads
torch.

May import: model.errors, model.state, model.tables, model.columns, model.features.
"""
