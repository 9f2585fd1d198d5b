"""The Ray Serve application: replicas that each hold the whole model and no session.

    serve deploy:  import_path: serve.app:build_app,  args: {bundle: s3://models/best, serve: {max_batch_sequences: 64}}

A replica is ingress and model in one: a second deployment behind the first would only add a hop.

May import: serve.config, serve.replica, model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray.serve
from pydantic import Field

from model.settings import Settings, build
from model.storage import absolute
from serve.config import ServeConfig, deployment_options
from serve.replica import Replica

DEPLOYMENT = "dynamic-rnn"


class AppArgs(Settings):
    """The arguments of `build_app`."""

    bundle: str = Field(min_length=1, description="path or URI of the bundle to serve")
    serve: ServeConfig = Field(ServeConfig(), description="the serve section of a run's YAML")


def build_app(args: Mapping[str, Any]) -> ray.serve.Application:
    """The application for `bundle` and, optionally, a `serve` section; ConfigError for unknown keys."""
    wanted = build(AppArgs, args, where="the arguments of serve.app:build_app")
    deployment = ray.serve.deployment(ray.serve.ingress()(Replica), name=DEPLOYMENT, **deployment_options(wanted.serve))
    # Workers run elsewhere: a relative path would mean another directory there.
    return deployment.bind(absolute(wanted.bundle), wanted.serve)
