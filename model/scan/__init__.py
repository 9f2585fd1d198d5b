"""One pass over row groups: checks, bad rows, statistics, split, fit and its report. Knows no torch.

May import: model.errors, model.settings, model.tables, model.columns, model.features, model.config, model.batches,
model.state.
"""
