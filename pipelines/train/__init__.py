"""Training on Ray Train: the driver (run), a worker's process (ray_worker), and the loop itself (loop), which knows no
Ray.

May import: pipelines.config, pipelines.cluster, pipelines.ingest, pipelines.report, pipelines.supervision,
pipelines.tracking, model.
"""
