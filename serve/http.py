"""The HTTP face of a served model: routes, content types, limits, status codes. Knows no Ray.

Answers: 200 where at least one row could be scored (the others have an `error` each); 422 where none could;
400 for a body that cannot be read, 413 for one that is too large, 415 for another content type.

May import: serve.config, serve.wire, model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from fastapi import FastAPI, Request, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from model.scoring.scorer import Scored
from serve.config import LimitsConfig
from serve.wire.arrow_codec import ArrowDecoder, encode_arrow
from serve.wire.errors import RequestError, all_rows_bad
from serve.wire.inputs import Inputs, RequestRows
from serve.wire.json_codec import JsonDecoder, encode_json
from serve.wire.media_types import ARROW, JSON
from serve.wire.schemas import ErrorResponse, Health, ModelDescription, PredictRequest, PredictResponse

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REFUSALS = {
    400: "The body cannot be read.",
    413: "The request is too large.",
    415: "The content type is neither of the two.",
    422: "No row of the request can be scored, or its columns are not the model's.",
}
_FAILURES = {
    408: "No answer in time. The body is plain text.",
    429: "The server is overloaded; Retry-After says when to come back. The body may be plain text.",
    500: "The server failed. The body may be plain text.",
    503: "No replica is there. The body may be plain text.",
}


class Decoder(Protocol):
    """Bytes of a content type to rows."""

    def decode(self, body: bytes) -> RequestRows: ...


@dataclass(frozen=True)
class Service:
    """What the routes need to know of a model: how to score (a request's good rows), and what to tell of it."""

    score: Callable[[pa.Table], Awaitable[Scored]]
    nothing: Scored
    inputs: Inputs
    limits: LimitsConfig
    description: ModelDescription


def build_api(service: Service) -> FastAPI:
    """The application; it holds no state but the service."""
    api = FastAPI(
        title="dynamic-rnn",
        description="Predictions for sequences, event by event: send the new event and the state, get the prediction "
        "and the next state. No history is replayed and the server keeps no session.",
        version="1",
        responses=_documented(_FAILURES),
    )
    _add_predict(api, service)
    _add_descriptions(api, service)
    api.add_exception_handler(RequestError, _request_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(Exception, _own_error)
    return api


def _add_predict(api: FastAPI, service: Service) -> None:
    decoders: dict[str, Decoder] = {
        JSON: JsonDecoder(service.inputs, service.limits),
        ARROW: ArrowDecoder(service.inputs, service.limits),
    }
    body = {JSON: {"schema": PredictRequest.model_json_schema()}, ARROW: _BINARY}

    @api.post(
        "/v1/predict",
        response_class=Response,
        responses={200: {"model": PredictResponse, "content": {ARROW: _BINARY}}, **_documented(_REFUSALS)},
        openapi_extra={"requestBody": {"required": True, "content": body}},
        summary="Predictions and next states",
    )
    async def predict(request: Request) -> Response:
        media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        decoder = decoders.get(media_type)
        if decoder is None or request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError(415, f"the content type must be {JSON} or {ARROW}, not encoded, but is {media_type!r}")
        rows = decoder.decode(await _body(request, service.limits.max_body_bytes))
        if rows.errors and not rows.good:
            raise all_rows_bad(rows.errors)
        scored = await service.score(rows.table) if rows.good else service.nothing
        if rows.good and len(scored.errors) == len(rows.good):
            raise all_rows_bad({**rows.errors, **{rows.good[row]: fault for row, fault in scored.errors.items()}})
        return Response(_encode(service, media_type, rows, scored), media_type=media_type)


def _documented(statuses: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse, "description": text} for status, text in statuses.items()}


def _encode(service: Service, media_type: str, rows: RequestRows, scored: Scored) -> bytes:
    if media_type == ARROW:
        return encode_arrow(rows, scored, service.inputs.state.arrow_fields(), service.description.fingerprint)
    return encode_json(rows, scored, service.inputs.state.names, service.description.fingerprint)


def _add_descriptions(api: FastAPI, service: Service) -> None:
    description = Response(service.description.model_dump_json(), media_type=JSON)
    ready = Response(to_json({"status": "ready", "model": service.description.fingerprint}), media_type=JSON)
    alive = Response(to_json({"status": "alive", "model": service.description.fingerprint}), media_type=JSON)

    @api.get("/v1/model", response_model=ModelDescription, summary="What is served, and what it wants")
    async def model() -> Response:
        return description

    @api.get("/healthz", response_model=Health, summary="Liveness")
    async def healthz() -> Response:
        return alive

    # A replica takes requests only after its warm-up, so that reaching this route is being ready.
    @api.get("/readyz", response_model=Health, summary="Readiness: the model is loaded and has scored once")
    async def readyz() -> Response:
        return ready


async def _body(request: Request, most: int) -> bytes:
    """The body, read no further than the limit."""
    declared = request.headers.get("content-length", "")
    length, chunks = int(declared) if declared.isdecimal() else 0, []
    if length <= most:
        length = 0
        async for chunk in request.stream():
            length += len(chunk)
            chunks.append(chunk)
            if length > most:
                break
    if length > most:
        raise RequestError(413, f"the body must have at most {most} bytes, but has {declared or 'more'}; split it")
    return b"".join(chunks)


def _refusal(status: int, body: dict[str, Any], headers: Any = None) -> Response:
    return Response(to_json(body), status, media_type=JSON, headers=headers)


async def _request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _refusal(error.status, error.body())


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; the routes are in /openapi.json"
    return _refusal(error.status_code, {"error": {"message": message}}, error.headers)


async def _own_error(_request: Request, _error: Exception) -> Response:
    # Starlette raises the error again after this answer, so that it is logged; callers see no stack traces.
    return _refusal(500, {"error": {"message": "the server failed to answer; its log says why"}})
