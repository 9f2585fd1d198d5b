"""The real thing: Ray, Serve with two replicas behind HAProxy, and HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pytest

from model.bundle.bundle import Bundle, save_bundle
from model.errors import ConfigError, ResourceError
from serve.app import build_app
from serve.client import Client, ClientError
from serve.config import AutoscalingConfig, LimitsConfig, ServeConfig
from serve.run import ServeHandle, run

INPUTS = ("x", "vector", "kind", "tags", "age", "country")
STEPS = INPUTS[:4]
Features = dict[str, Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Bundle]) -> str:
    path = tmp_path_factory.mktemp("served bundle")
    save_bundle(path, make_bundle(predict_probabilities=True))
    return str(path)


@pytest.fixture(scope="module")
def config() -> ServeConfig:
    return ServeConfig(
        port=free_port(),
        route_prefix="/rnn",
        autoscaling=AutoscalingConfig(min_replicas=2, max_replicas=2),
        drain_seconds=0.5,
        limits=LimitsConfig(max_body_bytes=100_000),
    )


@pytest.fixture(scope="module")
def server(local_ray: None, bundle: str, config: ServeConfig) -> Iterator[ServeHandle]:
    handle = run(bundle, config)
    yield handle
    handle.stop()
    assert not [child for child in psutil.Process().children(recursive=True) if child.name() == "haproxy"]


@pytest.fixture
def client(server: ServeHandle) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="session")
def rows(make_table: Callable[..., pa.Table]) -> list[Features]:
    features: list[Features] = make_table(lengths=[6, 3, 1, 4]).select(INPUTS).to_pylist()
    return features


def event(features: Features, step: int) -> Features:
    return {name: features[name][step : step + 1] for name in STEPS}


def one_by_one(clients: list[Client], features: Features) -> tuple[list[Any], dict[str, list[float]]]:
    """The probabilities of each step and the last state; the clients take turns."""
    state, chances = None, []
    for step in range(len(features["x"])):
        sequence = {"features": {**features, **event(features, step)}, "state": state}
        (prediction,) = clients[step % len(clients)].predict([sequence])
        chances += prediction["probabilities"]
        state = prediction["state"]
    assert state is not None
    return chances, state


def test_events_one_by_one_equal_the_whole_sequence(client: Client, rows: list[Features]) -> None:
    (whole,) = client.predict([{"features": rows[0]}])
    chances, state = one_by_one([client], rows[0])
    np.testing.assert_allclose(chances, whole["probabilities"], atol=1e-5)
    for name, values in whole["state"].items():
        np.testing.assert_allclose(state[name], values, atol=1e-5)


def test_events_one_by_one_equal_the_whole_sequence_in_arrow(client: Client, rows: list[Features]) -> None:
    whole = client.predict_table(pa.Table.from_pylist([rows[0]]))
    states: dict[str, Any] = {}
    chances = []
    for step in range(6):
        table = pa.Table.from_pylist([{**rows[0], **event(rows[0], step), **states}])
        answer = client.predict_table(table).to_pylist()[0]
        assert answer["error"] is None
        chances += answer["probabilities"]
        states = {name: answer[name] for name in answer if name.startswith("rnn_cell_state")}
    np.testing.assert_allclose(chances, whole["probabilities"][0].as_py(), atol=1e-5)


def replica_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "ServeReplica" in child.name()]


def replica_urls(config: ServeConfig) -> list[str]:
    """The replicas' own addresses, past the proxy."""
    ports = {
        connection.laddr.port
        for replica in replica_processes()
        for connection in replica.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip == config.host
    }
    return [f"http://{config.host}:{port}{config.route_prefix}" for port in sorted(ports)]


def test_replicas_hold_no_state(client: Client, config: ServeConfig, rows: list[Features]) -> None:
    urls = replica_urls(config)
    assert len(urls) == 2
    replicas = [Client(url) for url in urls]
    alternating = one_by_one(replicas, rows[0])
    assert alternating == one_by_one([client], rows[0])
    for replica in replicas:
        replica.close()


def test_many_callers_at_once_get_what_each_would_get_alone(client: Client, rows: list[Features]) -> None:
    alone = [one_by_one([client], row)[0] for row in rows]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda row: one_by_one([client], row)[0], rows * 6))
    for number, chances in enumerate(together):
        np.testing.assert_allclose(chances, alone[number % len(rows)], atol=1e-6)


def test_a_bad_row_leaves_its_mates_answers_bit_for_bit(client: Client, rows: list[Features]) -> None:
    good = [{"features": rows[0]}, {"features": rows[1]}]
    mixed = client.predict([good[0], {"features": {**rows[2], "kinds": []}}, good[1]])
    assert [mixed[0], mixed[2]] == client.predict(good)
    assert mixed[1] == {"error": {"column": "kinds", "message": "is not a feature of this model; did you mean kind?"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector": [[1, 2]]}, "column 'vector': item 0 must be a list of 3 numbers, but has 2 items"),
        ({"x": [float("nan")]}, "column 'x': item 0 must be a finite number, but is nan"),
    ],
)
def test_a_bad_event_is_one_clear_line(
    server: ServeHandle, rows: list[Features], change: Features, message: str
) -> None:
    body = json.dumps({"sequences": [{"features": {**rows[2], **change}}]})
    response = httpx.post(f"{server.url}/v1/predict", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == f"the row is bad: row 0, {message}"


def test_a_part_of_a_state_is_refused(client: Client, rows: list[Features]) -> None:
    with pytest.raises(ClientError, match=r"a state must have all of .* but rnn_cell_state_1, .* is missing"):
        client.predict([{"features": rows[2], "state": {"rnn_cell_state_0": [0] * 4}}])


def test_a_large_body_is_refused_whether_its_length_is_told_or_not(server: ServeHandle) -> None:
    kind = {"content-type": "application/json"}
    for content in (b" " * 200_000, iter([b" " * 60_000] * 3)):
        response = httpx.post(f"{server.url}/v1/predict", content=content, headers=kind)
        assert response.status_code == 413
        assert response.json()["error"]["message"].startswith("the body must have at most 100000 bytes")


def test_the_model_describes_itself_and_is_ready(client: Client, server: ServeHandle) -> None:
    description = client.model()
    assert {each["name"] for each in description["inputs"]} == set(INPUTS)
    ready = httpx.get(f"{server.url}/readyz")
    assert ready.json() == {"status": "ready", "model": description["fingerprint"]}
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    schema = httpx.get(f"{server.url}/openapi.json").json()
    assert schema["servers"] == [{"url": "/rnn"}]


def test_a_replica_that_dies_takes_no_sequence_with_it(client: Client, rows: list[Features]) -> None:
    alone = one_by_one([client], rows[0])[0]
    victim = replica_processes()[0]

    def many(number: int) -> list[Any]:
        if number == 8:
            victim.kill()
        return one_by_one([client], rows[0])[0]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(many, range(40)))
    assert not victim.is_running()
    for chances in together:
        np.testing.assert_allclose(chances, alone, atol=1e-6)


def test_a_second_server_on_the_same_ray_is_refused(server: ServeHandle, bundle: str, config: ServeConfig) -> None:
    with pytest.raises(ResourceError, match="Ray Serve must not run yet on this Ray, but does"):
        run(bundle, config)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"bundle": "x", "serve": {"max_batch": 3}},
            "the arguments of serve.app:build_app: serve.max_batch is not a setting; did you mean "
            "serve.max_batch_sequences?",
        ),
        (
            {"bundel": "x", "bundle": "y"},
            "the arguments of serve.app:build_app: bundel is not a setting; did you mean bundle?",
        ),
    ],
)
def test_unknown_arguments_are_refused_though_ray_would_take_them(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_app(args)
    assert str(caught.value) == message
