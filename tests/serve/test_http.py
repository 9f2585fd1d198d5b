"""The HTTP application and the client around a real model, without Ray: answers, statuses, batching, OpenAPI."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from model.bundle.bundle import Bundle, save_bundle
from model.scoring.scorer import Scored
from serve.client import Client, ClientError
from serve.config import LimitsConfig, ServeConfig
from serve.http import Service, build_api
from serve.replica import Replica
from serve.wire.schemas import Health, ModelDescription, PredictResponse

CONFIG = ServeConfig(limits=LimitsConfig(max_body_bytes=20_000, max_sequences_per_request=16))
INPUTS = ("x", "vector", "kind", "tags", "age", "country")
STEPS = INPUTS[:4]

MakeBundle = Callable[..., Bundle]
Features = dict[str, Any]


class Loop(httpx.BaseTransport):
    """Calls the application in this process, one request at a time."""

    def __init__(self, service: Service) -> None:
        self.inner = httpx.ASGITransport(build_api(service), raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._handle(request))

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            assert isinstance(request.stream, httpx.SyncByteStream)
            for chunk in request.stream:
                yield chunk

        again = httpx.Request(request.method, request.url, headers=request.headers, content=body())
        response = await self.inner.handle_async_request(again)
        return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, make_bundle: MakeBundle) -> Service:
    path = tmp_path_factory.mktemp("bundle")
    bundle = make_bundle(classes=("no", "so", "yes"), predict_probabilities=True)
    save_bundle(path, dataclasses.replace(bundle, metrics={"loss": 0.5}))
    return Replica(str(path), CONFIG).service()


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client("http://server", transport=Loop(service)) as client:
        yield client


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url="http://server", transport=Loop(service)) as client:
        yield client


@pytest.fixture(scope="session")
def rows(make_table: Callable[..., pa.Table]) -> list[Features]:
    """Features of sequences of 3, 4, 1 and 7 steps."""
    features: list[Features] = make_table(lengths=[3, 4, 1, 7]).select(INPUTS).to_pylist()
    return features


def of(*features: Features) -> list[dict[str, Any]]:
    return [{"features": each} for each in features]


def context(features: Features) -> Features:
    return {name: features[name] for name in ("age", "country")}


def event(features: Features, step: int) -> Features:
    return {name: features[name][step : step + 1] for name in STEPS}


# Answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("prediction", ["multiple_value", "single_value"])
@pytest.mark.parametrize("problem", ["classification", "linear_regression"])
def test_events_one_by_one_equal_the_whole_sequence(
    tmp_path: Path, make_bundle: MakeBundle, rows: list[Features], problem: str, prediction: str, cell: str
) -> None:
    chances = problem == "classification"
    save_bundle(tmp_path, make_bundle(problem, prediction, cell, predict_probabilities=chances))
    with Client("http://server", transport=Loop(Replica(str(tmp_path), CONFIG).service())) as client:
        (whole,) = client.predict(of(rows[3]))
        session = client.session(context=context(rows[3]))
        steps = [session.step(event(rows[3], step)) for step in range(7)]
    output = "probabilities" if chances else "scores"
    one_by_one = [step[output][0] for step in steps] if prediction == "multiple_value" else steps[-1][output]
    np.testing.assert_allclose(one_by_one, whole[output], atol=1e-5)
    assert steps[-1]["state"].keys() == whole["state"].keys()
    for name, values in whole["state"].items():
        np.testing.assert_allclose(steps[-1]["state"][name], values, atol=1e-5)


def test_no_steps_leave_the_state_as_it_was(client: Client, rows: list[Features]) -> None:
    session = client.session(context=context(rows[0]))
    before = session.step(event(rows[0], 0))["state"]
    assert session.step(event(rows[0], 9)) == {"classes": [], "probabilities": [], "state": before}


def test_json_and_arrow_give_the_same_answers(client: Client, make_table: Callable[..., pa.Table]) -> None:
    table = make_table(lengths=[3, 1, 5]).drop(["age"]).append_column("age", pa.array([30, None, 50], pa.int32()))
    rows = table.select(INPUTS).to_pylist()
    first = client.predict(of(*rows))
    answer = client.predict_table(table)
    assert answer.column("error").null_count == 3
    assert answer.column("classes").to_pylist() == [row["classes"] for row in first]
    for name in first[0]["state"]:
        assert answer.column(name).to_pylist() == [row["state"][name] for row in first]
        table = table.append_column(name, answer.column(name))
    second = client.predict([{"features": row, "state": p["state"]} for row, p in zip(rows, first, strict=True)])
    again = client.predict_table(table)
    assert again.column("probabilities").to_pylist() == [row["probabilities"] for row in second]
    assert second != first


def bad(features: Features) -> Features:
    return {**features, "x": [float("nan"), *features["x"][1:]]}


def test_a_bad_row_leaves_its_mates_answers_bit_for_bit(http: httpx.Client, rows: list[Features]) -> None:
    alone = post(http, of(rows[0], rows[1])).json()["predictions"]
    mixed = post(http, of(rows[0], bad(rows[3]), rows[1])).json()["predictions"]
    assert [mixed[0], mixed[2]] == alone
    assert mixed[1] == {"error": {"column": "x", "message": "item 0 must be a finite number, but is nan"}}


def test_a_bad_arrow_row_leaves_its_mates_answers_bit_for_bit(client: Client, rows: list[Features]) -> None:
    alone = client.predict_table(pa.Table.from_pylist([rows[0], rows[1]]))
    mixed = client.predict_table(pa.Table.from_pylist([rows[0], bad(rows[3]), rows[1]]))
    assert mixed.take([0, 2]).equals(alone)
    message = "column 'x': must hold finite numbers, but holds NaN or an infinite one"
    assert mixed.column("error").to_pylist() == [None, message, None]


def test_what_only_the_model_can_refuse_is_an_error_of_its_row_too(http: httpx.Client, rows: list[Features]) -> None:
    # A null in a column that has no substitute for it: the doors let it pass, the fitted column does not.
    answer = post(http, of(rows[0], {**rows[1], "x": [None, *rows[1]["x"][1:]]})).json()["predictions"]
    message = "must not be null; declare `missing: mean` or a number for this column to fill nulls"
    assert answer[1] == {"error": {"column": "x", "message": message}}
    assert answer[0] == post(http, of(rows[0])).json()["predictions"][0]


def test_a_request_of_bad_rows_only_is_refused(client: Client, rows: list[Features]) -> None:
    with pytest.raises(ClientError) as caught:
        client.predict([{"features": {**rows[0], "age": "x"}}, {"features": {}}])
    assert caught.value.status == 422
    assert str(caught.value) == (
        "http://server/v1/predict: status 422: all 2 rows are bad, the first because of this: "
        "row 0, column 'age': must be a number, but is 'x'"
    )
    first, second = caught.value.rows
    assert first == {"row": 0, "column": "age", "message": "must be a number, but is 'x'"}
    assert (second["row"], second["message"].split(";")[0]) == (1, "must be given, but is missing")


def test_no_rows_get_no_predictions(client: Client, rows: list[Features]) -> None:
    assert client.predict([]) == []
    assert client.predict_table(pa.Table.from_pylist(rows).slice(0, 0)).num_rows == 0


def test_a_session_keeps_its_state_when_an_event_is_refused(client: Client, rows: list[Features]) -> None:
    session = client.session(context=context(rows[0]))
    session.step(event(rows[0], 0))
    before = session.state
    with pytest.raises(ClientError, match="column 'kind': must be a list of strings, but is 'b'"):
        session.step({**event(rows[0], 1), "kind": "b"})
    assert session.state is before
    later = client.session(context=context(rows[0]), state=before)
    assert later.step(event(rows[0], 1)) == session.step(event(rows[0], 1))


def test_categories_in_a_table_are_sent_as_strings(client: Client, rows: list[Features]) -> None:
    table = pa.Table.from_pylist(rows)
    encoded = table.set_column(5, "country", table["country"].dictionary_encode())
    assert client.predict_table(encoded).equals(client.predict_table(table))


# Refusals -------------------------------------------------------------------------------------------------------


def post(http: httpx.Client, sequences: Any) -> httpx.Response:
    body = json.dumps({"sequences": sequences})  # which writes NaN as NaN
    return http.post("/v1/predict", content=body, headers={"content-type": "application/json"})


def test_a_large_body_is_refused_whether_its_length_is_told_or_not(http: httpx.Client) -> None:
    body = json.dumps({"sequences": [{}] * 10_000}).encode()
    assert len(body) > 20_000
    kind = {"content-type": "application/json"}
    told = http.post("/v1/predict", content=body, headers=kind)
    untold = http.post("/v1/predict", content=iter([body[:15_000], body[15_000:]]), headers=kind)
    assert [told.status_code, untold.status_code] == [413, 413]
    length = len(body)
    assert told.json() == {"error": {"message": f"the body must have at most 20000 bytes, but has {length}; split it"}}
    assert untold.json() == {"error": {"message": "the body must have at most 20000 bytes, but has more; split it"}}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "message"),
    [
        (
            "POST",
            "/v1/predict",
            {"content-type": "text/csv"},
            415,
            "the content type must be application/json or application/vnd.apache.arrow.stream, not encoded, but is "
            "'text/csv'",
        ),
        ("GET", "/v1/predict", {}, 405, "GET /v1/predict: Method Not Allowed; the routes are in /openapi.json"),
        ("GET", "/v2", {}, 404, "GET /v2: Not Found; the routes are in /openapi.json"),
    ],
)
def test_other_requests_get_the_same_form_of_error(
    http: httpx.Client, method: str, path: str, headers: dict[str, str], status: int, message: str
) -> None:
    response = http.request(method, path, headers=headers)
    assert (response.status_code, response.json()) == (status, {"error": {"message": message}})


def test_a_mistake_of_ours_shows_no_stack_trace(service: Service, rows: list[Features]) -> None:
    async def broken(_table: pa.Table) -> Scored:
        raise RuntimeError("secret path")

    broken_service = Service(broken, service.nothing, service.inputs, service.limits, service.description)
    with httpx.Client(base_url="http://server", transport=Loop(broken_service)) as http:
        response = post(http, of(rows[0]))
    assert response.status_code == 500
    assert response.json() == {"error": {"message": "the server failed to answer; its log says why"}}


# Descriptions ---------------------------------------------------------------------------------------------------


def test_the_model_describes_itself(client: Client, service: Service) -> None:
    description = client.model()
    assert ModelDescription.model_validate(description) == service.description
    assert {each["name"]: (each["type"], each["group"]) for each in description["inputs"]} == {
        "x": ("list<item: double>", "sequence"),
        "vector": ("list<item: fixed_size_list<item: double>[3]>", "sequence"),
        "kind": ("list<item: string>", "sequence"),
        "tags": ("list<item: list<item: string>>", "sequence"),
        "age": ("double", "context"),
        "country": ("string", "context"),
    }
    assert [each["name"] for each in description["state"]] == [f"rnn_cell_state_{i}" for i in range(4)]
    assert [each["values"] for each in description["state"]] == [4, 4, 3, 3]
    assert description["classes"] == ["no", "so", "yes"]
    assert description["metrics"] == {"loss": 0.5}


@pytest.mark.parametrize(("path", "status"), [("/healthz", "alive"), ("/readyz", "ready")])
def test_health_names_the_model(http: httpx.Client, service: Service, path: str, status: str) -> None:
    response = http.get(path)
    assert Health.model_validate(response.json()) == Health(status=status, model=service.description.fingerprint)


def test_answers_are_what_openapi_says(http: httpx.Client, rows: list[Features]) -> None:
    answer = post(http, of(rows[0], bad(rows[1]))).json()
    assert PredictResponse.model_validate(answer).model_dump(exclude_unset=True) == answer
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/predict", "/v1/model", "/healthz", "/readyz"}
    predict = paths["/v1/predict"]["post"]
    kinds = {"application/json", "application/vnd.apache.arrow.stream"}
    assert set(predict["requestBody"]["content"]) == kinds
    assert set(predict["responses"]["200"]["content"]) == kinds
    assert {"400", "413", "415", "422", "429", "500", "503"} <= set(predict["responses"])
