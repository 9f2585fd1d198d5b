"""Random inputs for the graphs of an export, and what the model itself gives for them. Knows no files, no onnx."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from model.batches.collate import SequenceBatch
from model.errors import CheckpointError
from model.export.graphs import Graph
from model.network import heads

Arrays = dict[str, np.ndarray]
TOLERANCE = 1e-4  # an export that is wrong is wrong by far more; float32 rounding of long rows by less


class Sample(NamedTuple):
    """Inputs by name, the outputs that must come, and where they mean something: `real` [B] or [B, T]."""

    inputs: Arrays
    expected: Arrays
    real: np.ndarray


def sample(graph: Graph, rows: int, steps: int, seed: int) -> Sample:
    """`rows` random rows of up to `steps` steps, some of none."""
    random = np.random.default_rng(seed)
    sizes = {"batch": rows, "time": steps}
    lengths = random.integers(0, steps + 1, rows)
    lengths[:1] = steps
    inputs: Arrays = {}
    for port in graph.inputs:
        shape = tuple(sizes.setdefault(d, 1 + seed % 3) if isinstance(d, str) else d for d in port.dims)
        inputs[port.name] = random.normal(size=shape).astype(np.float32)
    for feature in graph.features:
        if feature.port.dtype == "int64":
            buckets = next(part.buckets for part in graph.parts() if part.key == feature.key)
            inputs[feature.port.name] = random.integers(-1, buckets, inputs[feature.port.name].shape)
    if graph.kind == "sequence":
        inputs["sequence_length"] = lengths
    else:
        lengths = np.ones(rows, np.int64)
    per_step = graph.kind == "sequence" and graph.label.per_step
    real = np.arange(steps)[None] < lengths[:, None] if per_step else lengths > 0
    return Sample(inputs, expected(graph, inputs, lengths), real)


def expected(graph: Graph, inputs: Arrays, lengths: np.ndarray) -> Arrays:
    """The outputs by name, as the network computes them."""
    values = [torch.from_numpy(inputs[port.name]) for port in graph.inputs]
    groups, rest = graph.read(tuple(values))
    lengths_B = torch.from_numpy(lengths)
    states = tuple(rest[-len(graph.states) :])
    batch = SequenceBatch(lengths_B, lengths_B, groups["sequence"], groups["context"], state=states)
    with torch.inference_mode():
        output = graph.network(batch)
        predicted = heads.predict(graph.label, output.logits, probabilities=graph.probabilities)
        if "classes" in predicted:
            predicted["probabilities"] = heads.class_probabilities(graph.label, output.logits)
    if graph.kind == "step" and graph.label.per_step:
        predicted = {name: values[:, 0] for name, values in predicted.items()}
    names = [port.name for port in graph.outputs]
    tensors = [*(predicted[name] for name in names if name in predicted), *output.state]
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def compare(found: Arrays, sample: Sample, graph: str) -> None:
    """CheckpointError where outputs differ from those expected by more than rounding."""
    for name, want in sample.expected.items():
        have, place = found[name], np.full(len(want), True)
        if name in ("scores", "classes", "probabilities"):
            place = sample.real
        if have.shape != want.shape or have.dtype != want.dtype:
            raise CheckpointError(
                f"{graph}: output {name!r} must be {want.dtype} {want.shape}, but is {have.dtype} {have.shape}"
            )
        if name == "classes":
            place = sample.real & _certain(sample.expected["probabilities"])
        difference = np.abs(have[place] - want[place]) / (1 + np.abs(want[place]))
        if not (difference <= TOLERANCE).all():
            raise CheckpointError(
                f"{graph}: output {name!r} must be what the model gives, but differs by {difference.max():.2g}; these "
                f"versions of torch and onnx do not export it rightly"
            )


def _certain(probabilities: np.ndarray) -> np.ndarray:
    """Where the likeliest class is likelier than the next by more than rounding."""
    ordered = np.sort(probabilities, -1)
    certain: np.ndarray = ordered[..., -1] - ordered[..., -2] > TOLERANCE
    return certain
