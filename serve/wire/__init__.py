"""Bytes of requests and answers to rows and back, as JSON and as Arrow. Knows no HTTP, and of the model only its
description.

May import: serve.config, model.
"""
