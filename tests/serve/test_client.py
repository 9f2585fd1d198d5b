"""The client alone: retries, waiting, errors, and how little it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from serve.client import Client, ClientError


def answering(*responses: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client whose server gives these answers in turn, and the requests it made."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        answer = responses[len(asked)]
        asked.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://server", retries=2, transport=httpx.MockTransport(handle)), asked


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("serve.client.time.sleep", slept.append)
    return slept


def test_the_client_waits_as_long_as_an_overloaded_server_says(naps: list[float]) -> None:
    busy = httpx.Response(429, headers={"retry-after": "3"}, text="busy")
    client, asked = answering(busy, httpx.ConnectError("refused"), httpx.Response(200, json={"predictions": []}))
    assert client.predict([]) == []
    assert (len(asked), naps) == (3, [3.0, 0.2])


def test_the_client_asks_again_where_a_proxy_lost_a_replica_but_not_where_the_server_failed(naps: list[float]) -> None:
    lost = httpx.Response(500, text="Internal Server Error")
    failed = httpx.Response(500, json={"error": {"message": "the server failed to answer; its log says why"}})
    client, asked = answering(lost, failed)
    with pytest.raises(ClientError, match="status 500: the server failed to answer"):
        client.predict([])
    assert (len(asked), naps) == (2, [0.1])


def test_the_client_gives_up_and_waits_no_longer_than_it_wants(naps: list[float]) -> None:
    busy = [httpx.Response(503, headers={"retry-after": "3600"}, text="no\nreplica") for _ in range(3)]
    client, _ = answering(*busy)
    with pytest.raises(ClientError) as caught:
        client.predict([])
    assert str(caught.value) == "http://server/v1/predict: status 503: no replica"
    assert (caught.value.status, naps) == (503, [10.0, 10.0])


def test_a_server_out_of_reach_is_one_clear_error(naps: list[float]) -> None:
    client, _ = answering(*[httpx.ConnectError("connection refused")] * 3)
    with pytest.raises(ClientError) as caught:
        client.model()
    assert str(caught.value) == "http://server must be a server in reach, but is not: connection refused"
    assert (caught.value.status, len(naps)) == (None, 2)


def test_a_refused_request_is_not_sent_again(naps: list[float]) -> None:
    client, asked = answering(httpx.Response(422, json={"error": {"message": "is bad"}}))
    with pytest.raises(ClientError, match="status 422: is bad"):
        client.predict([])
    assert (len(asked), naps) == (1, [])


def test_the_client_loads_nothing_heavy() -> None:
    heavy = ["torch", "ray", "fastapi", "starlette", "pyarrow", "numpy", "pandas", "pydantic"]
    code = f"import sys, serve.client; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
