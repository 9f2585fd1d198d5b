"""The `serve:` section of a run's YAML. Knows no Ray: `deployment_options` and its like are plain data.

Ray Serve silently accepts keys that it does not know, so every field here is mapped onto Ray's by name.

May import: model.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from model.settings import Settings


class AutoscalingConfig(Settings):
    """How many replicas there are. Ray Serve adds one when the mean load of the present ones exceeds the target."""

    min_replicas: int = Field(1, ge=1, description="replicas that are always there")
    initial_replicas: int | None = Field(None, ge=1, description="replicas at the start; null means min_replicas")
    max_replicas: int = Field(1, ge=1, description="replicas at most; above min_replicas, load decides between the two")
    target_ongoing_requests: float = Field(
        16.0, gt=0, description="requests in work and waiting at a replica that autoscaling aims at"
    )
    upscale_delay_seconds: float = Field(
        30.0, ge=0, description="seconds the load must stay high before a replica is added"
    )
    downscale_delay_seconds: float = Field(
        600.0, ge=0, description="seconds the load must stay low before a replica is removed"
    )
    look_back_seconds: float = Field(30.0, gt=10, description="seconds of load that one scaling decision averages over")

    def model_post_init(self, _context: object) -> None:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas must be at least min_replicas, but is {self.max_replicas} where min_replicas is "
                f"{self.min_replicas}"
            )
        if self.initial_replicas is not None and not (self.min_replicas <= self.initial_replicas <= self.max_replicas):
            raise ValueError(
                f"initial_replicas must lie between min_replicas and max_replicas, but is {self.initial_replicas} "
                f"where they are {self.min_replicas} and {self.max_replicas}"
            )


class LimitsConfig(Settings):
    """What one request may hold. A server that meets strangers wants them low; all are checked before any scoring."""

    max_body_bytes: int = Field(8 * 2**20, ge=1, description="bytes of a request's body, checked while it is read")
    max_sequences_per_request: int = Field(1024, ge=1, description="sequences in a request")
    max_steps_per_request: int = Field(100_000, ge=1, description="steps of all sequences of a request together")
    max_string_length: int = Field(1024, ge=1, description="characters of one string value")


class ServeConfig(Settings):
    """How a bundle is served."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on; 0.0.0.0 lets other machines reach the server and, with ingress haproxy, its "
        "replicas, too (ports from 30000)",
    )
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on")
    route_prefix: str = Field("/", description="path in front of every route, such as /completion")
    ingress: Literal["haproxy", "default"] = Field(
        "haproxy",
        description="what takes the connections: HAProxy (Linux; several times the throughput) or Ray Serve's own "
        "proxy. HAProxy also opens two ports on all interfaces that tell its statistics, 9101 and 8404 where free",
    )
    autoscaling: AutoscalingConfig = Field(AutoscalingConfig(), description="number of replicas")
    num_cpus: float = Field(1.0, ge=0, description="CPUs a replica reserves; above 1 it computes with as many threads")
    num_gpus: float = Field(0.0, ge=0, description="GPUs a replica reserves; above 0 it computes on a GPU")
    max_ongoing_requests: int = Field(256, ge=1, description="requests a replica works on at a time")
    max_queued_requests: int = Field(
        512, ge=1, description="requests that may wait beyond those; more are refused with status 429"
    )
    retry_after_seconds: int = Field(1, ge=1, description="seconds a refused caller is told to wait (Retry-After)")
    request_timeout_seconds: float = Field(30.0, gt=0, description="seconds until a request ends with status 408")
    drain_seconds: float = Field(
        2.0, ge=0, description="seconds a replica keeps answering after it was told to stop, so that proxies forget it"
    )
    max_batch_sequences: int = Field(128, ge=1, description="sequences that are scored together")
    batch_wait_seconds: float = Field(
        0.0, ge=0, le=1, description="seconds to wait for more requests before scoring; 0 takes what is there"
    )
    probabilities: bool | None = Field(
        None, description="whether answers hold the classes' probabilities; null means as the model was configured"
    )
    access_log: bool = Field(
        False, description="whether Ray Serve writes a line for each request to its log; it costs throughput"
    )
    limits: LimitsConfig = Field(LimitsConfig(), description="what one request may hold")
    plugins: tuple[str, ...] = Field(
        (), description="modules that register cells, imported in each replica; with the run's own `plugins`"
    )

    @field_validator("route_prefix")
    @classmethod
    def _route_is_a_path(cls, value: str) -> str:
        if not value.startswith("/") or (value != "/" and value.endswith("/")) or set(value) & set("{}?#"):
            raise ValueError(f"must be a path such as / or /completion, without a / at its end, but is {value!r}")
        return value

    def model_post_init(self, _context: object) -> None:
        if self.max_ongoing_requests < self.max_batch_sequences:
            raise ValueError(
                f"max_ongoing_requests must be at least max_batch_sequences, or a batch never fills, but is "
                f"{self.max_ongoing_requests} where max_batch_sequences is {self.max_batch_sequences}"
            )

    @property
    def url(self) -> str:
        """Where a caller on this machine finds the server."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
        host = everywhere.get(self.host, f"[{self.host}]" if ":" in self.host else self.host)
        return f"http://{host}:{self.port}{self.route_prefix.rstrip('/')}"

    @property
    def device(self) -> str:
        """Where a replica computes."""
        return "cuda" if self.num_gpus else "cpu"


def deployment_options(config: ServeConfig) -> dict[str, Any]:
    """The options of Ray Serve's deployment, by Ray's names."""
    return {
        "autoscaling_config": autoscaling_options(config.autoscaling),
        "max_ongoing_requests": config.max_ongoing_requests,
        "max_queued_requests": config.max_queued_requests,
        "backpressure_config": {"status_code": 429, "retry_after_s": config.retry_after_seconds},
        "graceful_shutdown_wait_loop_s": min(config.drain_seconds, 2.0),
        "graceful_shutdown_timeout_s": config.request_timeout_seconds + config.drain_seconds,
        "ray_actor_options": {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        "logging_config": {"enable_access_log": config.access_log},
        # A bundle that cannot be loaded will not load at the twentieth try either (Ray's default).
        "max_constructor_retry_count": 2,
    }


def autoscaling_options(scaling: AutoscalingConfig) -> dict[str, Any]:
    """The fields of Ray Serve's AutoscalingConfig."""
    return {
        "min_replicas": scaling.min_replicas,
        "initial_replicas": scaling.initial_replicas,
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": scaling.target_ongoing_requests,
        "upscale_delay_s": scaling.upscale_delay_seconds,
        "downscale_delay_s": scaling.downscale_delay_seconds,
        "look_back_period_s": scaling.look_back_seconds,
    }


def http_options(config: ServeConfig) -> dict[str, Any]:
    """The fields of Ray Serve's HTTPOptions, which belong to the cluster and not to the application."""
    return {"host": config.host, "port": config.port, "request_timeout_s": config.request_timeout_seconds}


def ingress_environment(config: ServeConfig) -> dict[str, str]:
    """Environment variables of Serve's controller; its proxies and replicas inherit them.

    With `serve deploy` they must stand in the environment in which the Ray head starts.
    """
    if config.ingress == "default":
        return {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(config.drain_seconds),
    }
