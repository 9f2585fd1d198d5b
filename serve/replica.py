"""One copy of a model behind its own HTTP application, warmed up. Knows no Ray; `serve.app` hands it over.

May import: serve.config, serve.wire, serve.dynamic_batching, serve.http, model.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI

from model.registry import import_plugins
from model.scoring.scorer import Scored, Scorer, prediction_names
from serve.config import ServeConfig
from serve.dynamic_batching import Batcher
from serve.http import Service, build_api
from serve.wire.inputs import Inputs
from serve.wire.schemas import InputColumn, ModelDescription, StateColumn

_WARM_UP_STEPS = (1, 8)  # the path of one event, and that of many
_logger = logging.getLogger(__name__)


class Replica:
    """Holds the model, and nothing that a request leaves behind."""

    def __init__(self, bundle: str, config: ServeConfig) -> None:
        self.config = config
        import_plugins(config.plugins)
        self.scorer = Scorer.load(bundle, device=config.device, probabilities=config.probabilities)
        self.inputs = Inputs.of(self.scorer.columns, self.scorer.state_spec)
        self.nothing = warm_up(self.scorer, self.inputs)

    def service(self) -> Service:
        """What the routes need; of one event loop."""
        batcher = Batcher(self.scorer.score, self.config.max_batch_sequences, self.config.batch_wait_seconds)
        description = describe(self.scorer, self.inputs, self.config)
        return Service(batcher.score, self.nothing, self.inputs, self.config.limits, description)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The name under which Ray Serve asks for the application, once the replica stands."""
        return build_api(self.service())


def warm_up(scorer: Scorer, inputs: Inputs) -> Scored:
    """Scores once along each path, so that no caller pays for first calls; gives the result of no rows."""
    for steps in _WARM_UP_STEPS:
        example = inputs.example(steps)
        first = scorer.score(example)
        # Not a fault: a column may refuse zero. The paths were taken all the same.
        for error in first.errors.values():
            _logger.info("warm-up: %s", error)
        for each, part in zip(inputs.state.arrow_fields(), inputs.state.to_arrow(first.state), strict=True):
            example = example.append_column(each, part)
        scorer.score(example)
    return scorer.score(inputs.example(1).slice(0, 0))


def describe(scorer: Scorer, inputs: Inputs, config: ServeConfig) -> ModelDescription:
    """What GET /v1/model tells."""
    return ModelDescription(
        fingerprint=scorer.fingerprint,
        inputs=[
            InputColumn(
                name=each.name, type=str(each.type), group="sequence" if each.name in inputs.sequence else "context"
            )
            for each in inputs.schema
        ],
        state=[StateColumn(name=c.name, shape=list(c.shape), values=c.numel) for c in inputs.state.components],
        label=scorer.label.name,
        problem_type=scorer.label.problem_type.value,
        prediction_type=scorer.label.prediction_type.value,
        classes=list(scorer.label.class_values) or None,
        outputs=list(prediction_names(scorer.label, probabilities=scorer.probabilities)),
        cell_type=scorer.config.cell_type,
        num_units=list(scorer.config.num_units),
        metrics=scorer.metrics,
        limits=config.limits.model_dump(),
    )
