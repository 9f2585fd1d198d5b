"""The commands. The only package that may open every other, tune and serve too, inside functions.

May import: pipelines, model.
"""
