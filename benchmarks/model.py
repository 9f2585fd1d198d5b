"""The model against hand-written PyTorch: training steps, one event at a time, and the import.

    python benchmarks/model.py [--quick] [--json FILE] [--threads N]

The hand-written loop is what one writes first: torch.nn.LSTM or GRU, a linear layer, the mean squared error, Adam, on
tensors that lie ready. Ours does more at each step: masks, weights, the global norm and its clipping, the look-up
marks. Both get the same batch.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else `import model` would find this very file

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks._common import Measure, arguments, at_least, at_most, race, told  # noqa: E402
from model import DynamicRnnEstimator, PredictionType, ProblemType, real_valued_column  # noqa: E402
from model.batches.collate import SequenceBatch, collate  # noqa: E402
from model.batches.encode import encode_rows  # noqa: E402
from model.estimator.arguments import declare  # noqa: E402
from model.training.trainer import Trainer  # noqa: E402

B, T, D = 64, 100, 32
SHAPES: list[tuple[str, list[int]]] = [("lstm", [128]), ("lstm", [256]), ("lstm", [256, 256]), ("gru", [256])]
TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
IMPORT_GOAL_SECONDS, IMPORT_WINDOWS = 0.3, 5


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(options.threads)
    threads, quick = options.threads, options.quick
    measures = training(4.0 if quick else 30.0, threads) + steps(2.0 if quick else 12.0, threads) + [imports()]
    told(measures, f"Model, torch {torch.__version__}, {options.threads} thread(s)", options.json)


# Training ---------------------------------------------------------------------------------------------------------


def training(seconds: float, threads: int) -> list[Measure]:
    """Our steps a second as a share of the hand-written loop's."""
    measures = []
    for cell, units in SHAPES:
        features, labels = data()
        both = [make(cell, units, features, labels) for make in (our_step, their_step)]
        run = race(both, seconds=seconds, threads=threads)
        ours, theirs = run.seconds
        name = f"training step, {cell} {' + '.join(map(str, units))}"
        detail = f"{ours * 1e3:.1f} ms, hand-written {theirs * 1e3:.1f} ms"
        measures.append(at_least(name, 1 / run.ratios[0], "of its steps/s", 0.97, detail))
    return measures


def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(B, T, D)).astype(np.float32), random.normal(size=(B, T)).astype(np.float32)


def fitted(cell: str, units: list[int], features: np.ndarray, labels: np.ndarray) -> Any:
    model = DynamicRnnEstimator(
        ProblemType.LINEAR_REGRESSION,
        PredictionType.MULTIPLE_VALUE,
        [real_valued_column("x")],
        num_units=units,
        cell_type=cell,
        optimizer="Adam",
        learning_rate=1e-3,
        config={"device": "cpu"},
    )
    return model.fit(x={"x": features}, y=labels, steps=1)


def our_step(cell: str, units: list[int], features: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    model = fitted(cell, units, features, labels)
    bundle, declared = model.fitted_bundle(), declare(model.get_params())
    trainer = Trainer(bundle.network().train(), bundle.label, declared.optimizer, seed=1)
    batch = batch_of(model, features, labels)
    return lambda: trainer.step(batch)


def batch_of(model: Any, features: np.ndarray, labels: np.ndarray) -> SequenceBatch:
    import pyarrow as pa

    bundle = model.fitted_bundle()
    table = pa.table({"x": features.tolist(), "label": labels.tolist()})
    return collate(encode_rows(table, bundle.columns, bundle.label))


def their_step(cell: str, units: list[int], features: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    rnn = TORCH[cell](D, units[0], len(units), batch_first=True)
    linear = torch.nn.Linear(units[-1], 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *linear.parameters()], lr=1e-3)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)

    def step() -> float:
        optimizer.zero_grad()
        outputs, _ = rnn(x)
        loss = torch.nn.functional.mse_loss(linear(outputs).squeeze(-1), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


# One event at a time ----------------------------------------------------------------------------------------------


def steps(seconds: float, threads: int) -> list[Measure]:
    """`step()` at B = 1 on ready tensors, beside torch's cell and torch's layer; and on a dict of Python values."""
    units = 128
    model = fitted("lstm", [units], *data())
    run = race(
        [
            many(our_event(model, torch.randn(1, D))),
            many(cell_event(units)),
            many(layer_event(units)),
            many(our_event(model, {"x": torch.randn(D).tolist()})),
        ],
        seconds=seconds,
        threads=threads,
    )
    ours, cell, layer, plain = (each / EVENTS * 1e6 for each in run.seconds)
    detail = f"{ours:.1f} µs, nn.LSTMCell + Linear {cell:.1f} µs"
    return [
        at_most(f"step, lstm {units}, against nn.LSTMCell", run.ratios[0], "of its time", 1.3, detail),
        at_least(
            f"step, lstm {units}, against nn.LSTM", 1 / run.ratios[1], "times faster", 4.0, f"nn.LSTM {layer:.1f} µs"
        ),
        Measure(f"step, lstm {units}, from a dict of values", plain, "µs", detail="with encoding and plain results"),
    ]


EVENTS = 100


def many(event: Callable[[], object]) -> Callable[[], object]:
    """A hundred events a run, for one is shorter than the clock is exact."""

    def run() -> None:
        for _ in range(EVENTS):
            event()

    return run


def our_event(model: Any, features: Any) -> Callable[[], object]:
    state = None

    def event() -> None:
        nonlocal state
        _, state = model.step(features, state)

    return event


def cell_event(units: int) -> Callable[[], object]:
    cell, linear = torch.nn.LSTMCell(D, units), torch.nn.Linear(units, 1)
    x, state = torch.randn(1, D), (torch.zeros(1, units), torch.zeros(1, units))

    @torch.inference_mode()
    def event() -> None:
        nonlocal state
        state = cell(x, state)
        linear(state[0])

    return event


def layer_event(units: int) -> Callable[[], object]:
    layer, linear = torch.nn.LSTM(D, units, batch_first=True), torch.nn.Linear(units, 1)
    x, state = torch.randn(1, 1, D), (torch.zeros(1, 1, units), torch.zeros(1, 1, units))

    @torch.inference_mode()
    def event() -> None:
        nonlocal state
        outputs, state = layer(x, state)
        linear(outputs)

    return event


# The import -------------------------------------------------------------------------------------------------------


def imports() -> Measure:
    """Seconds of computing that our import takes beyond torch's, in fresh processes turn by turn."""
    ours, theirs = "from model import DynamicRnnEstimator", "import torch"
    for code in (ours, theirs):
        seconds_of(code)
    pairs = [(seconds_of(ours), seconds_of(theirs)) for _ in range(IMPORT_WINDOWS)]
    beyond = statistics.median(a - b for a, b in pairs)
    torch_seconds = statistics.median(b for _, b in pairs)
    detail = f"import torch {torch_seconds:.2f} s"
    return at_most("import, beyond that of torch", beyond, "s", IMPORT_GOAL_SECONDS, detail)


def seconds_of(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
