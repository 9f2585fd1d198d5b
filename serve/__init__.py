"""Online serving: events and states in, predictions and next states out, over HTTP, on Ray Serve.

config            what the `serve:` section of a run's YAML may say
wire              bytes of requests and answers to rows and back, as JSON and as Arrow
dynamic_batching  requests that arrive together are scored together
http              routes, content types, limits, status codes
replica           one warmed-up model behind its application
app               build_app: the Ray Serve application
run               starts and stops it on a running Ray
client            what callers use; loads neither torch nor Ray

May import: serve, model.
"""
