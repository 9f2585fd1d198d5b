"""Bundles: a trained model as a directory of JSON and safetensors. No pickle, no code.

    model.json          format version, config, fitted columns and label, state spec, metrics, provenance, fingerprint
    model.safetensors   weights
    training/…          in training checkpoints only: optimizer slots and position
    MANIFEST.json       written last: every file's size and sha256; a directory without it is not a bundle

Knows nothing of how models are trained or served.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from model.bundle.run_directory import MANIFEST
from model.config import ModelConfig
from model.errors import CheckpointError
from model.features.fitted_columns import FittedColumns
from model.features.labels import FittedLabel
from model.network.network import RnnNetwork, build_network
from model.settings import build
from model.state import StateSpec
from model.storage import exists, join, read_bytes, write_bytes
from model.storage.filesystems import PathLike

FORMAT_VERSION = 1
MODEL, WEIGHTS = "model.json", "model.safetensors"
PARTS = ("config", "columns", "label", "metrics", "provenance")  # of model.json: its mappings
TRAINING_STATE, TRAINING_TENSORS = "training/state.json", "training/tensors.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Bundle:
    """A trained model: everything it takes to score rows, and what is known of how it came to be."""

    config: ModelConfig
    columns: FittedColumns
    label: FittedLabel
    tensors: Tensors = field(repr=False)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The model's version: sha256 over weights, config, columns and label; not metrics or provenance."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for part in (self.config, self.columns, self.label):
            # Without defaults, so that a setting added later does not change the version of a model saved before.
            digest.update(_canonical(part.model_dump(mode="json", exclude_defaults=True)))
        return digest.hexdigest()

    def network(self) -> RnnNetwork:
        """The network with the bundle's weights; CheckpointError names every tensor that does not fit."""
        network = build_network(self.config, self.columns, self.label, seed=0, pretrained=False)
        load_weights(network, self.tensors)
        return network.eval()


@dataclass(frozen=True)
class TrainingState:
    """What a training checkpoint adds to a bundle: numbers as JSON, tensors by name."""

    numbers: dict[str, Any]
    tensors: Tensors = field(repr=False)


def bundle_of(
    network: RnnNetwork,
    columns: FittedColumns,
    label: FittedLabel,
    *,
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle with a copy of the network's weights."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return Bundle(network.config, columns, label, tensors, dict(metrics or {}), dict(provenance or {}))


# Writing --------------------------------------------------------------------------------------------------------


def save_bundle(path: PathLike, bundle: Bundle, training: TrainingState | None = None) -> str:
    """Writes a bundle and returns its fingerprint; a reader sees it only once its MANIFEST is there."""
    fingerprint = bundle.fingerprint
    files = {WEIGHTS: save(bundle.tensors), MODEL: _pretty(_description(bundle, fingerprint))}
    if training is not None:
        files[TRAINING_TENSORS] = save({name: tensor.contiguous() for name, tensor in training.tensors.items()})
        files[TRAINING_STATE] = _pretty(training.numbers)
    for name, content in files.items():
        write_bytes(join(path, name), content)
    entries = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in files.items()}
    write_bytes(join(path, MANIFEST), _pretty({"format_version": FORMAT_VERSION, "files": entries}))
    return fingerprint


def _description(bundle: Bundle, fingerprint: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "config": bundle.config.model_dump(mode="json"),
        "columns": bundle.columns.model_dump(mode="json"),
        "label": bundle.label.model_dump(mode="json"),
        "state": state_spec(bundle).model_dump(mode="json"),
        "metrics": {name: value if abs(value) < float("inf") else None for name, value in bundle.metrics.items()},
        "provenance": bundle.provenance,
    }


def state_spec(bundle: Bundle) -> StateSpec:
    """The state's components; needs no weights."""
    with torch.device("meta"):
        return RnnNetwork(bundle.config, bundle.columns, bundle.label).state_spec()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Reading --------------------------------------------------------------------------------------------------------


def load_bundle(path: PathLike) -> Bundle:
    """Reads and verifies a bundle. CheckpointError says what is missing, damaged or of another format."""
    files = verified_files(path, (MODEL, WEIGHTS))
    where = join(path, MODEL)
    description = _json(files[MODEL], where)
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version must be {FORMAT_VERSION}, but is {version}; update dynamic-rnn")
    missing = [part for part in PARTS if not isinstance(description.get(part), dict)]
    if missing:
        raise CheckpointError(f"{where}: must hold {', '.join(PARTS)}, but {', '.join(missing)} is missing")
    bundle = Bundle(
        build(ModelConfig, description["config"], where=where),
        build(FittedColumns, description["columns"], where=where),
        build(FittedLabel, description["label"], where=where),
        _tensors(files[WEIGHTS], join(path, WEIGHTS)),
        {name: value for name, value in description["metrics"].items() if value is not None},
        description["provenance"],
    )
    if bundle.fingerprint != description.get("fingerprint"):
        raise CheckpointError(f"{path}: the fingerprint in {MODEL} is not that of the weights and config beside it")
    return bundle


def load_training_state(path: PathLike) -> TrainingState:
    """The training part of a checkpoint; CheckpointError where the bundle has none."""
    files = verified_files(path, (TRAINING_STATE, TRAINING_TENSORS))
    return TrainingState(
        _json(files[TRAINING_STATE], join(path, TRAINING_STATE)),
        _tensors(files[TRAINING_TENSORS], join(path, TRAINING_TENSORS)),
    )


def verified_files(path: PathLike, names: tuple[str, ...]) -> dict[str, bytes]:
    """Files of a bundle, checked against its MANIFEST."""
    try:
        if not exists(path):
            raise CheckpointError(f"{path}: there is no such bundle; check the path")
        manifest = json.loads(read_bytes(join(path, MANIFEST)))["files"]
        digests = {name: str(entry["sha256"]) for name, entry in manifest.items()}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path}: must be a bundle, but has no {MANIFEST}; it is another directory, or was not written to its end"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {MANIFEST} is damaged; restore the bundle or train again") from error
    return {name: _verified(path, name, digests) for name in names}


def _verified(path: PathLike, name: str, digests: Mapping[str, str]) -> bytes:
    if name not in digests:
        raise CheckpointError(f"{path}: {name} is not part of this bundle")
    try:
        content = read_bytes(join(path, name))
    except OSError as error:
        raise CheckpointError(f"{path}: {name} must be there, but cannot be read; restore the bundle") from error
    if _sha256(content) != digests[name]:
        raise CheckpointError(
            f"{path}: {name} is damaged: its {len(content)} bytes do not have the sha256 in {MANIFEST}; restore the "
            f"bundle or train again"
        )
    return content


def _json(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: must be JSON, but: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: must be a JSON mapping, but is a {type(value).__name__}")
    return value


def _tensors(content: bytes, where: str) -> Tensors:
    try:
        tensors: Tensors = load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{where}: must be a safetensors file, but: {error}") from error
    return tensors


def load_weights(network: RnnNetwork, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors into a network name by name; CheckpointError lists every difference."""
    own = network.state_dict()
    faults = [f"{name} is not in the bundle" for name in own if name not in tensors]
    faults += [f"{name} is in the bundle, but not in this model" for name in tensors if name not in own]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)} in the bundle, but this config builds {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if faults:
        raise CheckpointError("the weights do not fit the model: " + "; ".join(faults))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
