"""The serve section: what it refuses, and that every field reaches Ray's under Ray's name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from model.errors import ConfigError
from model.settings import build, describe
from serve.config import (
    AutoscalingConfig,
    LimitsConfig,
    ServeConfig,
    autoscaling_options,
    deployment_options,
    http_options,
    ingress_environment,
)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"prot": 1}, "serve: prot is not a setting; did you mean port?"),
        (
            {"autoscaling": {"max_replica": 3}},
            "serve: autoscaling.max_replica is not a setting; did you mean autoscaling.max_replicas?",
        ),
        ({"port": 0}, "serve: port must be at least 1, but is 0"),
        ({"max_queued_requests": -1}, "serve: max_queued_requests must be at least 1, but is -1"),
        ({"ingress": "nginx"}, "serve: ingress must be one of haproxy, default, but is 'nginx'"),
        (
            {"max_ongoing_requests": 64},
            "serve: max_ongoing_requests must be at least max_batch_sequences, or a batch never fills, but is 64 where "
            "max_batch_sequences is 128",
        ),
        (
            {"autoscaling": {"min_replicas": 3, "max_replicas": 2}},
            "serve: autoscaling: max_replicas must be at least min_replicas, but is 2 where min_replicas is 3",
        ),
        (
            {"autoscaling": {"initial_replicas": 4, "max_replicas": 2}},
            "serve: autoscaling: initial_replicas must lie between min_replicas and max_replicas, but is 4 where they "
            "are 1 and 2",
        ),
        (
            {"route_prefix": "predict/"},
            "serve: route_prefix: must be a path such as / or /completion, without a / at its end, but is 'predict/'",
        ),
    ],
)
def test_a_fault_in_the_section_is_one_clear_line(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ServeConfig, section, where="serve")
    assert str(caught.value) == message


@pytest.mark.parametrize("config_class", [ServeConfig, AutoscalingConfig, LimitsConfig])
def test_every_field_has_a_description(config_class: type[BaseModel]) -> None:
    assert [name for name, field in config_class.model_fields.items() if not field.description] == []
    assert describe(config_class)


def test_every_option_is_one_that_ray_knows() -> None:
    # Ray drops keys that it does not know, so that a renamed field would go unnoticed.
    import ray.serve
    from ray.serve.config import AutoscalingConfig as RayAutoscalingConfig
    from ray.serve.config import HTTPOptions

    config = ServeConfig(autoscaling=AutoscalingConfig(max_replicas=3))
    autoscaling, http = autoscaling_options(config.autoscaling), http_options(config)
    assert set(autoscaling) <= set(RayAutoscalingConfig.model_fields)
    assert set(http) <= set(HTTPOptions.model_fields)
    assert RayAutoscalingConfig(**autoscaling).max_replicas == 3
    # `deployment` takes keywords by name, and raises for others.
    assert ray.serve.deployment(**deployment_options(config))(type("Some", (), {})).max_ongoing_requests == 256


def test_the_url_is_one_that_this_machine_can_call() -> None:
    assert ServeConfig().url == "http://127.0.0.1:8000"
    assert ServeConfig(host="0.0.0.0", port=9000, route_prefix="/a/b").url == "http://127.0.0.1:9000/a/b"
    assert ServeConfig(host="::").url == "http://[::1]:8000"


def test_the_ingress_is_chosen_by_the_environment() -> None:
    assert ingress_environment(ServeConfig(ingress="default")) == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    assert ingress_environment(ServeConfig(drain_seconds=1)) == {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1.0",
    }
