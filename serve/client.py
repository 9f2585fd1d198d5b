"""What callers use: httpx and nothing heavier. Loads neither torch nor Ray; pyarrow only for tables.

    with Client("http://127.0.0.1:8000") as client:
        session = client.session(context={"package": "asyncio", "indent_width": 0})
        for character in "def ":
            prediction = session.step({"char": [character]})

The server keeps no session: `Session` keeps the state here and sends it along.

May import: serve.wire, model.errors.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from model.errors import DynamicRnnError
from serve.wire.media_types import ARROW

if TYPE_CHECKING:
    import pyarrow as pa

_BUSY = (429, 502, 503, 504)
_HERE = ("127.0.0.1", "localhost", "::1")

Prediction = dict[str, Any]
State = dict[str, list[float]]


class ClientError(DynamicRnnError):
    """A request that got no prediction. `status` is the HTTP status, or None where there was no answer."""

    def __init__(self, message: str, *, status: int | None = None, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.rows = tuple(rows)


class Client:
    """A connection to a server. May be used by several threads; close it, or use it in a `with` statement.

    Where the server is overloaded (429, 503), has just lost a replica, or the connection breaks, a request is sent
    again up to `retries` times: the server keeps nothing, so that asking twice does no harm. The client waits as long
    as the server says, at most `max_wait_seconds` each time.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 30.0,
        retries: int = 4,
        max_wait_seconds: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.retries = retries
        self.max_wait_seconds = max_wait_seconds
        # A proxy that the environment names cannot reach this machine's own addresses.
        local = httpx.URL(self.url).host in _HERE
        self._http = httpx.Client(base_url=self.url, timeout=timeout_seconds, transport=transport, trust_env=not local)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def model(self) -> dict[str, Any]:
        """What is served, and what it wants: GET /v1/model."""
        description: dict[str, Any] = self._request("GET", "/v1/model").json()
        return description

    def predict(self, sequences: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """One prediction for each `{"features": …, "state": …}`, in their order.

        A bad sequence gets an `error` in its place; where all are bad, ClientError (status 422) has them in `rows`.
        """
        answer = self._request("POST", "/v1/predict", json={"sequences": list(sequences)})
        predictions: list[Prediction] = answer.json()["predictions"]
        return predictions

    def predict_table(self, table: pa.Table) -> pa.Table:
        """A table with the Parquet columns to one with predictions, next states and `error`, row by row."""
        import pyarrow as pa
        import pyarrow.ipc

        sink = io.BytesIO()
        plain = _without_dictionaries(table)
        with pa.ipc.new_stream(sink, plain.schema) as writer:
            writer.write_table(plain)
        answer = self._request("POST", "/v1/predict", content=sink.getvalue(), headers={"content-type": ARROW})
        return pa.ipc.open_stream(answer.content).read_all()

    def session(self, context: Mapping[str, Any] | None = None, state: State | None = None) -> Session:
        """A sequence to be sent event by event; `state` goes on from an earlier one."""
        return Session(self, context or {}, state)

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        for attempt in range(self.retries + 1):
            try:
                response = self._http.request(method, path, **content)
            except httpx.TimeoutException as error:
                raise ClientError(f"{self.url}{path} must answer in time, but did not: {error}") from error
            except httpx.HTTPError as error:
                if attempt == self.retries:
                    raise ClientError(f"{self.url} must be a server in reach, but is not: {error}") from error
                wait = _backoff(attempt)
            else:
                if not _is_passing(response) or attempt == self.retries:
                    break
                wait = _retry_after(response, attempt)
            time.sleep(min(wait, self.max_wait_seconds))
        if not response.is_success:
            raise _refused(response)
        return response


class Session:
    """One sequence: sends each event with the state that the last answer gave. Not for several threads."""

    def __init__(self, client: Client, context: Mapping[str, Any], state: State | None) -> None:
        self.client = client
        self.context = dict(context)
        self.state = state

    def step(self, features: Mapping[str, Sequence[Any]]) -> Prediction:
        """The prediction for the next event or events; after an error the state is what it was."""
        sequence = {"features": {**self.context, **features}, "state": self.state}
        prediction = self.client.predict([sequence])[0]
        self.state = prediction["state"]
        return prediction


def _without_dictionaries(table: pa.Table) -> pa.Table:
    """Categories as the strings they stand for: the server takes no dictionaries from strangers."""
    import pyarrow as pa

    for index, each in enumerate(table.schema):
        if pa.types.is_dictionary(each.type):
            table = table.set_column(index, each.name, table.column(index).cast(each.type.value_type))
    return table


def _is_passing(response: httpx.Response) -> bool:
    """Whether asking again may help: overload, or a proxy (plain text) that has just lost a replica."""
    lost = response.status_code == 500 and "json" not in response.headers.get("content-type", "")
    return response.status_code in _BUSY or lost


def _backoff(attempt: int) -> float:
    return float(0.1 * 2**attempt)


def _retry_after(response: httpx.Response, attempt: int) -> float:
    told = response.headers.get("retry-after", "")
    return float(told) if told.isdecimal() else _backoff(attempt)


def _refused(response: httpx.Response) -> ClientError:
    """The server's own message; proxies in front of it may answer in plain text."""
    status = response.status_code
    try:
        error = response.json()["error"]
        message, rows = error["message"], error.get("rows", ())
    except (ValueError, KeyError, TypeError):
        message, rows = " ".join(response.text.split())[:200] or response.reason_phrase, ()
    return ClientError(f"{response.request.url}: status {status}: {message}", status=status, rows=rows)
