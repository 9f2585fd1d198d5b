"""Online serving: events and states in, predictions and next states out, over HTTP, on Ray Serve.

config    what the `serve:` section of a run's YAML may say
app       build_app: the Ray Serve application
run       starts and stops it on a running Ray
client    what callers use; loads neither torch nor Ray

May import: serve, model.
"""
