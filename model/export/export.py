"""Exports: a bundle together with its graphs for other runtimes, each checked against the model before it counts.

    model.json, model.safetensors, MANIFEST.json   the bundle: an export is one, and serves as one
    sequence.onnx        all steps of padded rows (built-in cells)
    step.onnx, step.pt2  one step of each row, for ONNX and for torch.export
    signature.json       inputs and outputs of each graph by name, dtype and dimensions
    assets.extra/        the user's own files

The graphs take what columns become after their transform, which `model.json` describes: numbers, ids, lengths, states.
The packages of the extra `onnx` are imported when they are needed.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import torch

from model.bundle.bundle import Bundle, save_bundle
from model.errors import ConfigError
from model.export.check import Arrays, compare, sample
from model.export.graphs import NEXT, Graph, Port, SequenceGraph, StepGraph, has_operators
from model.features.categorical import FittedVocabulary
from model.features.encoded import MISSING_ID
from model.features.numeric import FittedNumeric
from model.storage import absolute, exists, is_directory, join, list_names, read_bytes, write_bytes
from model.storage.filesystems import PathLike

SIGNATURE, ASSETS = "signature.json", "assets.extra"
OPSET = 20
CHECKED = ((3, 5), (1, 1), (6, 11), (2, 3))  # rows and steps; the first is what is traced


def export(bundle: Bundle, directory: PathLike, *, assets_extra: Mapping[str, PathLike] | None = None) -> str:
    """Writes an export and returns its directory, absolute; `assets_extra` maps names there to files here.

    ConfigError where the directory holds files or the onnx packages are missing, CheckpointError where a graph does
    not compute what the model does.
    """
    target = absolute(directory)
    if list_names(target):
        raise ConfigError(f"{target}: must be a new or empty directory, but holds files; name another")
    assets = {_asset_name(name): _asset(path) for name, path in (assets_extra or {}).items()}
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    graphs: list[Graph] = [StepGraph(bundle)]
    if has_operators(graphs[0].network):
        graphs.append(SequenceGraph(bundle))
    files = {f"{ASSETS}/{name}": content for name, content in assets.items()}
    for graph in graphs:
        files |= _graph_files(graph)
    files[SIGNATURE] = signature(bundle, graphs, tuple(files))
    for name, content in files.items():
        write_bytes(join(target, name), content)
    save_bundle(target, bundle)  # last: until its MANIFEST is there, there is no export
    return target


def export_below(base: PathLike, bundle: Bundle, assets_extra: Mapping[str, PathLike] | None = None) -> str:
    """An export in a new directory below `base`, named by the seconds since 1970, so that the newest sorts last."""
    seconds = int(time.time())
    while exists(join(base, str(seconds))):
        seconds += 1
    return export(bundle, join(base, str(seconds)), assets_extra=assets_extra)


def require(package: str) -> Any:
    """A package of the extra `onnx`; ConfigError that says how to get it where it is missing."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"an export needs the package {package!r}, but it is not installed: pip install 'dynamic-rnn[onnx]'"
        ) from error


def signature(bundle: Bundle, graphs: list[Graph], files: tuple[str, ...]) -> bytes:
    """What each graph takes and gives, as JSON. Dimensions are sizes, or names where they are dynamic."""
    label = bundle.label
    described = {
        "format_version": 1,
        "fingerprint": bundle.fingerprint,
        "problem_type": label.problem_type,
        "prediction_type": label.prediction_type,
        "class_values": list(label.class_values) or None,
        "dimensions": {
            "batch": "at least 1",
            "…_values": "at least 1: values of an entry, filled up with -1",
            "time": "at least 1: rows without any step are padded to one (onnxruntime fails on arrays of none)",
        },
        "columns": dict(_transforms(bundle)),
        "graphs": {
            graph.kind: {
                "files": [name for name in files if name.startswith(f"{graph.kind}.")],
                "inputs": [_described(port) for port in graph.inputs],
                "outputs": [_described(port) for port in graph.outputs],
                "state": {port.name: f"{NEXT}{port.name}" for port in graph.states},
            }
            for graph in graphs
        },
    }
    return (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode()


def _transforms(bundle: Bundle) -> Iterator[tuple[str, dict[str, Any]]]:
    """By source key, how values become numbers or places in a vocabulary; the other kinds stand in docs/onnx.md.

    What `model.json` calls `scale` is multiplied by; here it is `multiply_by`, so that nobody divides.
    """
    for key, fitted in bundle.columns.sources.items():
        if isinstance(fitted, FittedNumeric):
            yield key, _numbers(fitted)
        elif isinstance(fitted, FittedVocabulary):
            yield key, _ids(fitted, key)


def _numbers(fitted: FittedNumeric) -> dict[str, Any]:
    return {
        "numbers": "(value - subtract) * multiply_by",
        "before": "log1p" if fitted.log1p else fitted.function,
        "subtract": fitted.shift or [0.0] * fitted.dimension,
        "multiply_by": fitted.scale or [1.0] * fitted.dimension,
        "missing": "an error" if fitted.fill is None else fitted.fill,
        "behind_the_numbers": "1 where the value is missing, else 0" if fitted.indicator else None,
    }


def _ids(fitted: FittedVocabulary, key: str) -> dict[str, Any]:
    several = f"{len(fitted.keys)} + FarmHash's Fingerprint64 modulo {fitted.oov_buckets}"
    return {
        "ids": f"places in columns.sources[{key!r}].keys of model.json, from 0",
        "unknown": several if fitted.oov_buckets > 1 else fitted.unknown_id(""),
        "missing": MISSING_ID,
    }


def _described(port: Port) -> dict[str, Any]:
    told = {"name": port.name, "dtype": port.dtype, "dims": list(port.dims)}
    return told | ({"what": port.what} if port.what else {})


# Graphs ---------------------------------------------------------------------------------------------------------


def _graph_files(graph: Graph) -> dict[str, bytes]:
    """The files of one graph, checked."""
    with _quiet():
        program = _traced(graph)
        files = {f"{graph.kind}.onnx": _onnx(graph, program)}
        if graph.kind == "step":
            stream = io.BytesIO()
            torch.export.save(program, stream)
            files["step.pt2"] = stream.getvalue()
    for name, content in files.items():
        run = _onnx_runner(content) if name.endswith(".onnx") else _torch_runner(graph, content)
        for number, (rows, steps) in enumerate(CHECKED):
            given = sample(graph, rows, steps, seed=number)
            compare(run(given.inputs), given, name)
    return files


def _traced(graph: Graph) -> torch.export.ExportedProgram:
    """The graph by torch.export, its dynamic dimensions named."""
    given = sample(graph, *CHECKED[0], seed=1)
    arguments = tuple(torch.from_numpy(given.inputs[port.name]) for port in graph.inputs)
    dims: dict[str, Any] = {}
    shapes = tuple(
        {
            place: dims.setdefault(size, torch.export.Dim(f"d{len(dims)}"))
            for place, size in enumerate(port.dims)
            if isinstance(size, str)
        }
        for port in graph.inputs
    )
    try:
        program = torch.export.export(graph.eval(), arguments, dynamic_shapes=(shapes,))
    except RuntimeError as error:
        cells = ", ".join(type(cell).__name__ for cell in graph.network.cells)
        raise ConfigError(
            f"a cell's step must be what torch.export takes, but that of {cells} is not: {str(error).splitlines()[0]}"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, of no use elsewhere
    program.example_inputs = None  # would be saved as a pickle
    return program


def _onnx(graph: Graph, program: torch.export.ExportedProgram) -> bytes:
    converted = torch.onnx.export(
        program,
        input_names=[port.name for port in graph.inputs],
        output_names=[port.name for port in graph.outputs],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert converted is not None, "given no file, it returns the program"
    proto = converted.model_proto
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # what the exporter thought on the way; most of the file
    _name_dimensions(proto.graph, {port.name: port for port in (*graph.inputs, *graph.outputs)})
    require("onnx").checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content


def _name_dimensions(graph: Any, ports: Mapping[str, Port]) -> None:
    """Gives the dynamic dimensions of an ONNX graph the names that its signature tells."""
    names: dict[str, str] = {}
    ends = [*graph.input, *graph.output]
    for value in ends:
        for dim, size in zip(value.type.tensor_type.shape.dim, ports[value.name].dims, strict=True):
            if isinstance(size, str):
                names[dim.dim_param] = size
    for value in (*ends, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _onnx_runner(content: bytes) -> Any:
    runtime = require("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _torch_runner(graph: Graph, content: bytes) -> Any:
    with _quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    def run(inputs: Arrays) -> Arrays:
        outputs = module(*(torch.from_numpy(inputs[port.name]) for port in graph.inputs))
        return {port.name: tensor.numpy() for port, tensor in zip(graph.outputs, outputs, strict=True)}

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what torch's exporters say of their own insides and of packages that we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch.export.load on its own bytes
            yield
    finally:
        logger.setLevel(level)


# Assets ---------------------------------------------------------------------------------------------------------


def _asset_name(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"assets_extra: a name must lie below the export, but is {name!r}")
    return str(path)


def _asset(path: PathLike) -> bytes:
    if not exists(path) or is_directory(path):
        raise ConfigError(f"assets_extra: must name files, but {str(path)!r} is none")
    return read_bytes(path)
