"""The wire format of JSON requests and answers, as OpenAPI tells it. For documentation: `serve.wire.json_codec` does
the work.

Validating requests through these models would cost more than scoring them does, and one bad row would fail them all;
a test holds real answers against them instead.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serve.wire.media_types import ARROW, JSON

Value = str | int | float | None
State = dict[str, list[float]]


class Document(BaseModel):
    """A JSON object of the wire format."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Sequence(Document):
    """One sequence, or the next events of one."""

    features: dict[str, Value | list[Any]] = Field(
        description="a value for each input of the model: for a sequence column a list with one item a step (one "
        "event or many, all columns equally long), for a context column the value itself"
    )
    state: State | None = Field(
        None, description="the state that the last answer gave, all components; null or absent begins a sequence"
    )


class PredictRequest(Document):
    """Sequences to predict; they do not influence each other."""

    sequences: list[Sequence]


class RowError(Document):
    """What is wrong with one sequence."""

    column: str | None = Field(description="the feature or state component at fault, where it is one")
    message: str


class Prediction(Document):
    """The answer to one sequence: predictions and the state to send with its next events, or else an error.

    Predictions are lists with one entry a step for a model of type multiple_value; else single values, null where
    the sequence has no steps. No steps leave the state as it was.
    """

    classes: Value | list[Value] = Field(None, description="classification: the likeliest class")
    probabilities: list[float] | list[list[float]] | None = Field(
        None, description="classification: the probability of each class, in the order of the model's classes"
    )
    scores: float | list[float] | None = Field(None, description="regression: the predicted number")
    state: State | None = Field(None, description="to be sent with the sequence's next events")
    error: RowError | None = Field(None, description="what is wrong with this sequence; the others are not affected")


class PredictResponse(Document):
    """One prediction a sequence, in the request's order."""

    model: str = Field(description="fingerprint of the model that answered")
    predictions: list[Prediction]


class NumberedRowError(RowError):
    """What is wrong with one sequence of a request."""

    row: int = Field(description="number of the sequence in the request, from 0")


class ErrorDetail(Document):
    """Why a request was refused."""

    message: str
    rows: list[NumberedRowError] | None = Field(None, description="status 422: what is wrong with each sequence")


class ErrorResponse(Document):
    """The one form of every refusal."""

    error: ErrorDetail


class InputColumn(Document):
    """A column of the request."""

    name: str
    type: str = Field(description="its Arrow type; columns of other types are converted where nothing is lost")
    group: str = Field(description="sequence: a list with one item a step; context: one value a sequence")


class StateColumn(Document):
    """A component of the state."""

    name: str
    shape: list[int]
    values: int = Field(description="length of its list: the shape's product")


class ModelDescription(Document):
    """What is served, and what it wants."""

    fingerprint: str = Field(description="the model's version: two models with the same one answer alike")
    inputs: list[InputColumn]
    state: list[StateColumn]
    label: str = Field(description="the column that was learnt")
    problem_type: str
    prediction_type: str
    classes: list[str | int] | None = Field(description="the class values in the order of the probabilities")
    outputs: list[str] = Field(description="what a prediction holds beside the state")
    cell_type: str
    num_units: list[int]
    metrics: dict[str, float] = Field(description="as measured when the model was trained")
    formats: list[str] = Field([JSON, ARROW], description="content types of requests; answers come in the same one")
    limits: dict[str, int] = Field(description="what one request may hold")


class Health(Document):
    """That the server is there."""

    status: str
    model: str
