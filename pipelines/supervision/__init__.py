"""The workers of Ray Train watched: their channel to the driver, heartbeat, watchdog, a trainer whose waits are
bounded.

May import: pipelines.config, pipelines.cluster, model.
"""
