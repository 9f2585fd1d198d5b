"""The demo's stages: the whole product on real data, in one Ray session, with honest figures at the end.

The sweep and the server belong to rooms that this one does not know; the front door hands them in as callables.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import DynamicRnnError
from model.settings import load_settings
from model.storage import join
from pipelines.config import RunConfig, run_config
from pipelines.console import Console
from pipelines.demo.baselines import Baselines, baselines
from pipelines.demo.data import ALPHABET, write_demo_data

YAML = Path(__file__).with_name("demo.yaml")
FULL_BYTES, QUICK_BYTES = 3_000_000, 200_000
QUICK = (
    "train.steps=40",
    "train.evaluate_every_steps=40",
    "train.batch_sequences=16",
    "model.num_units=[48]",
    "tune.trials=2",
    "tune.steps=8",
    "tune.evaluate_every_steps=4",
    "tune.space.num_units=[[16], [24]]",
)
PROMPTS = ("def __init__(self, ", "import os\nimport ", "class Error(", "    for i in range(", '    """Return the ')
COMPLETION_EVENTS = 80
TEMPERATURE = 0.5
MOST_DIFFERENCE = 1e-5  # between event-by-event and whole-sequence probabilities


@dataclass(frozen=True)
class Stages:
    """What the front door hands in: other rooms' work, and this one's with its display."""

    train: Callable[[RunConfig], Any]
    tune: Callable[[RunConfig], Any]
    evaluate: Callable[[str, str], dict[str, float]]
    predict: Callable[[str, str, str], Any]
    start_server: Callable[[str], Any]
    connect: Callable[[str], Any]


@dataclass
class Demo:
    """One run of the demo: where it lies, and what each stage took."""

    config: RunConfig
    directory: Path
    console: Console
    stages: Stages
    quick: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, purpose: str) -> Iterator[None]:
        """Announces a stage and keeps its time."""
        self.console.say(f"\n── {len(self.seconds) + 1}. {name}: {purpose}")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def load(directory: Path, *, quick: bool) -> RunConfig:
    """The demo's settings, with everything below `directory`; each demo has runs of its own."""
    data, now = directory.resolve() / "data", datetime.now().strftime("%Y%m%d-%H%M%S")
    overrides = [f"output={directory.resolve() / 'runs' / now}", *(QUICK if quick else ())]
    overrides += [f"data.{split}={data / split}" for split in ("train", "validation", "test")]
    return run_config(load_settings(YAML, overrides), where=str(YAML))


def run(demo: Demo) -> None:
    """All stages, in order; each says what it made."""
    with demo.stage("data", "the source code of this Python's standard library, one row a function or class"):
        data = write_demo_data(demo.directory / "data", max_bytes=QUICK_BYTES if demo.quick else FULL_BYTES)
        for split in (data.train, data.validation, data.test):
            demo.console.say(f"{split.path}: {split.rows} rows, {split.characters} characters, {split.files} files")
    with demo.stage("train", "an LSTM that predicts the next character (Ray Data, Ray Train)"):
        trained = demo.stages.train(demo.config)
        demo.console.say(f"best bundle: {trained.bundle}")
    with demo.stage("tune", "num_units, cell_type and dropout (Ray Tune)"):
        swept = demo.stages.tune(sweep_config(demo))
    with demo.stage("evaluate", "every character of the test files, beside models that only count"):
        metrics = demo.stages.evaluate(trained.bundle, str(data.test.path))
        tell_quality(demo, metrics, baselines(data.train.path, data.test.path))
    with demo.stage("predict", "the test files, Parquet to Parquet"):
        predicted = demo.stages.predict(trained.bundle, str(data.test.path), join(demo.config.output, "predictions"))
    with demo.stage("serve", "code completed over HTTP, a character a request, the state passed back and forth"):
        server = demo.stages.start_server(trained.bundle)
        try:
            with demo.stages.connect(server.url) as client:
                complete(demo.console, client, server.url)
        finally:
            server.stop()
    tell_next(demo, trained, swept, predicted)


def sweep_config(demo: Demo) -> RunConfig:
    """The sweep beside the run, with its own name."""
    return demo.config.model_copy(update={"name": "demo-sweep"})


# Quality ----------------------------------------------------------------------------------------------------------


def tell_quality(demo: Demo, metrics: Mapping[str, float], counted: Baselines) -> None:
    """Bits per character beside the yardsticks; a full demo that does not beat the counts is an error."""
    bits = metrics["bits_per_step"]
    rows = {
        "order-0 counts": counted.order0,
        "order-2 counts": counted.order2,
        "this model": bits,
        "lzma -9e (test text alone)": counted.lzma,
    }
    demo.console.say(f"bits per character on {counted.labels} characters of the test files:")
    for name, value in rows.items():
        demo.console.say(f"  {name:<28} {value:.3f}")
    if demo.quick:
        demo.console.say("(--quick trains too little to compare; the full demo beats both counts)")
    elif not bits < min(counted.order0, counted.order2):
        raise DynamicRnnError(f"the model must beat both counts, but needs {bits:.3f} bits per character")


# Completion -------------------------------------------------------------------------------------------------------


def complete(console: Console, client: Any, url: str) -> None:
    """Completes every prompt event by event, and proves that the whole sequence at once gives the same scores."""
    random, latencies, difference = np.random.default_rng(0), [], 0.0
    for prompt in PROMPTS:
        context = {"package": "(top level)", "indent_width": 0}
        text, scores, seconds = complete_one(client.session(context=context), prompt, random)
        latencies += seconds
        features = {**context, "char": list("\n" + text[:-1])}
        whole = client.predict([{"features": features, "state": None}])[0]["probabilities"]
        difference = max(difference, float(np.abs(np.array(whole) - np.array(scores)).max()))
        console.say("  ┌ " + text.replace("\n", "\n  │ "))
    tell_service(console, url, latencies, difference)


def complete_one(session: Any, prompt: str, random: np.random.Generator) -> tuple[str, list[Any], list[float]]:
    """(text, probabilities of each event, seconds of each request): feeds the prompt, then samples on."""
    text, scores, seconds = prompt, [], []
    previous = "\n"  # what stands before a file's first character
    for position in range(len(prompt) + COMPLETION_EVENTS):
        began = time.perf_counter()
        prediction = session.step({"char": [previous]})
        seconds.append(time.perf_counter() - began)
        scores.append(prediction["probabilities"][0])
        if position == len(text):
            text += sample(scores[-1], random)
        previous = text[position]
    return text, scores, seconds


def sample(probabilities: Sequence[float], random: np.random.Generator) -> str:
    """A character drawn from the sharpened distribution."""
    sharp = np.array(probabilities, np.float64) ** (1 / TEMPERATURE)
    return ALPHABET[int(random.choice(len(sharp), p=sharp / sharp.sum()))]


def tell_service(console: Console, url: str, latencies: Sequence[float], difference: float) -> None:
    """Latency and the proof; an error where the two ways of scoring differ."""
    ordered = sorted(latencies)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
    console.say(
        f"{len(latencies)} events over HTTP at {url}: median {statistics.median(ordered) * 1e3:.1f} ms, "
        f"99 % within {p99 * 1e3:.1f} ms"
    )
    console.say(f"event by event against the whole sequence: scores differ by at most {difference:.1e}")
    if difference > MOST_DIFFERENCE:
        raise DynamicRnnError(f"scores may differ by at most {MOST_DIFFERENCE:.0e}, but differ by {difference:.1e}")


def tell_next(demo: Demo, trained: Any, swept: Any, predicted: Any) -> None:
    """Times, where everything lies, and what to try."""
    total = sum(demo.seconds.values())
    told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in demo.seconds.items())
    demo.console.say(f"\n── done in {total:.0f} s ({told})")
    places = {"run": trained.directory, "sweep": swept.directory, "predictions": predicted.directory}
    demo.console.table("what was made:", places)
    demo.console.say("try next:")
    for command in (
        f"dynamic-rnn serve {trained.directory}",
        f"dynamic-rnn train {trained.directory}/run.yaml name=two-workers resources.workers=2",
        "dynamic-rnn settings > my-run.yaml",
    ):
        demo.console.say(f"  {command}")
