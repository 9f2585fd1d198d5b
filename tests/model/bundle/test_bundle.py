"""Bundles: what is written is read, the fingerprint is the model's version, and damage is told, never executed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from model.bundle import bundle as checkpoint
from model.bundle.bundle import (
    MODEL,
    WEIGHTS,
    Bundle,
    TrainingState,
    load_bundle,
    load_training_state,
    load_weights,
    save_bundle,
    state_spec,
)
from model.bundle.run_directory import MANIFEST
from model.columns import Vocabulary
from model.config import ModelConfig
from model.errors import CheckpointError
from model.features.categorical import FittedVocabulary
from model.registry import BUILT_IN_CELLS

TRAINING = TrainingState({"step": 7, "best": None}, {"m/projection.weight": torch.arange(6.0).view(2, 3).t()})


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Replaces a file and makes the MANIFEST agree, as an attacker or a careless tool would."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    description = json.loads((path / MODEL).read_text())
    change(description)
    rewrite(path, MODEL, json.dumps(description).encode())


def error_of(load: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as raised:
        load()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def path(tmp_path: Path, make_bundle: Any) -> Path:
    save_bundle(tmp_path / "größe 1", make_bundle(), TRAINING)
    return tmp_path / "größe 1"


# Round trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"problem": "linear_regression", "prediction": "single_value"},
        {"classes": ["no", "yes"], "num_classes": 2, "predict_probabilities": True},
        {"dtype": "float64", "num_units": [3], "dropout_keep_probabilities": [0.5, 0.9], "weight": "w"},
    ],
    ids=["plain", "regression", "classes", "float64"],
)
def test_a_bundle_is_read_as_it_was_written(tmp_path: Path, make_bundle: Any, cell: str, changes: Any) -> None:
    bundle = dataclasses.replace(
        make_bundle(cell=cell, **changes), metrics={"loss": 0.1}, provenance={"data": ["größe.parquet"], "rows": 3}
    )
    fingerprint = save_bundle(tmp_path / "bundle", bundle)
    found = load_bundle(tmp_path / "bundle")
    assert fingerprint == found.fingerprint == bundle.fingerprint
    for name in ("config", "columns", "label", "metrics", "provenance"):
        assert getattr(found, name) == getattr(bundle, name)
    assert sorted(found.tensors) == sorted(bundle.tensors)
    for name, tensor in bundle.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert {name: torch.equal(t, bundle.tensors[name]) for name, t in found.network().state_dict().items()} == (
        dict.fromkeys(bundle.tensors, True)
    )


def test_the_directory_holds_json_and_safetensors_and_a_manifest_of_both(path: Path) -> None:
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    assert files == [MANIFEST, MODEL, WEIGHTS, "training/state.json", "training/tensors.safetensors"]
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["format_version"] == 1
    assert manifest["files"] == {
        name: {"bytes": (path / name).stat().st_size, "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest()}
        for name in files[1:]
    }
    description = json.loads((path / MODEL).read_text())
    assert description["state"] == {
        "components": [{"name": f"rnn_cell_state_{i}", "shape": [width]} for i, width in enumerate((4, 4, 3, 3))]
    }


def test_the_training_part_is_read_as_it_was_written(path: Path) -> None:
    found = load_training_state(path)
    assert found.numbers == TRAINING.numbers
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
        "m/projection.weight": TRAINING.tensors["m/projection.weight"].tolist()
    }


def test_a_metric_that_is_no_number_is_left_out(tmp_path: Path, make_bundle: Any) -> None:
    metrics = {"loss": 0.5, "r2": float("nan"), "perplexity": float("inf")}
    save_bundle(tmp_path, dataclasses.replace(make_bundle(), metrics=metrics))
    assert load_bundle(tmp_path).metrics == {"loss": 0.5}


def test_the_state_spec_needs_no_weights(make_bundle: Any) -> None:
    bundle = make_bundle()
    assert state_spec(dataclasses.replace(bundle, tensors={})) == bundle.network().state_spec()


# The fingerprint --------------------------------------------------------------------------------------------------


def changed_tensor(bundle: Bundle) -> Bundle:
    tensors = {name: tensor.clone() for name, tensor in bundle.tensors.items()}
    tensors["projection.bias"][0] = torch.nextafter(tensors["projection.bias"][0], torch.tensor(9.0))
    return dataclasses.replace(bundle, tensors=tensors)


def swapped_keys(bundle: Bundle) -> Bundle:
    kind = bundle.columns.sources["vocabulary:kind"]
    assert isinstance(kind, FittedVocabulary)
    swapped = kind.model_copy(update={"keys": kind.keys[::-1]})
    columns = bundle.columns.model_copy(update={"sources": {**bundle.columns.sources, "vocabulary:kind": swapped}})
    return dataclasses.replace(bundle, columns=columns)


def renamed_tensor(bundle: Bundle) -> Bundle:
    tensors = dict(bundle.tensors)
    tensors["other.bias"] = tensors.pop("projection.bias")
    return dataclasses.replace(bundle, tensors=tensors)


def reshaped_tensor(bundle: Bundle) -> Bundle:
    return dataclasses.replace(
        bundle, tensors={**bundle.tensors, "projection.bias": bundle.tensors["projection.bias"][None]}
    )


@pytest.mark.parametrize(
    "change",
    [
        changed_tensor,
        renamed_tensor,
        reshaped_tensor,
        swapped_keys,
        lambda b: dataclasses.replace(b, config=b.config.model_copy(update={"predict_probabilities": True})),
        lambda b: dataclasses.replace(b, label=b.label.model_copy(update={"classes": ("a", "b", "c")})),
        lambda b: dataclasses.replace(b, tensors={n: t.double() for n, t in b.tensors.items()}),
    ],
    ids=["one bit", "tensor's name", "shape", "order of keys", "config", "classes", "dtype"],
)
def test_the_fingerprint_feels_every_part_of_the_model(make_bundle: Any, change: Callable[[Bundle], Bundle]) -> None:
    assert change(make_bundle()).fingerprint != make_bundle().fingerprint


def test_the_fingerprint_does_not_feel_what_is_no_part_of_the_model(make_bundle: Any) -> None:
    bundle = make_bundle()
    other = dataclasses.replace(
        bundle,
        metrics={"loss": 1.0},
        provenance={"by": "me"},
        columns=bundle.columns.model_copy(update={"sources": dict(reversed(bundle.columns.sources.items()))}),
        tensors={name: bundle.tensors[name] for name in sorted(bundle.tensors, reverse=True)},
    )
    bundle.columns.sources["vocabulary:kind"].value_type  # noqa: B018  (fills a cache)
    assert other.fingerprint == bundle.fingerprint


def test_a_setting_added_later_changes_no_fingerprint(make_bundle: Any) -> None:
    class LaterVersion(ModelConfig):
        zoneout: float = 0.0

    bundle = make_bundle()
    later = LaterVersion.model_validate(bundle.config.model_dump())
    assert dataclasses.replace(bundle, config=later).fingerprint == bundle.fingerprint
    other = later.model_copy(update={"zoneout": 0.5})
    assert dataclasses.replace(bundle, config=other).fingerprint != bundle.fingerprint


# Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MODEL, WEIGHTS])
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_is_told(path: Path, name: str, place: int) -> None:
    content = bytearray((path / name).read_bytes())
    content[place] ^= 1
    (path / name).write_bytes(content)
    assert error_of(lambda: load_bundle(path)) == (
        f"{path}: {name} is damaged: its {len(content)} bytes do not have the sha256 in MANIFEST.json; restore the "
        f"bundle or train again"
    )


@pytest.mark.parametrize("name", [MODEL, WEIGHTS])
def test_a_missing_file_is_told(path: Path, name: str) -> None:
    (path / name).unlink()
    assert error_of(lambda: load_bundle(path)) == (
        f"{path}: {name} must be there, but cannot be read; restore the bundle"
    )


def test_a_place_without_a_bundle_is_told(path: Path) -> None:
    assert error_of(lambda: load_bundle(path / "none")) == f"{path}/none: there is no such bundle; check the path"
    (path / MANIFEST).unlink()
    for place in (path, path / MODEL):
        assert error_of(lambda place=place: load_bundle(place)) == (
            f"{place}: must be a bundle, but has no MANIFEST.json; it is another directory, or was not written to its "
            f"end"
        )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"files": []}',
        b'{"files": {"model.json": 1}}',
        b'{"files": {"model.json": {}}}',
    ],
)
def test_a_manifest_that_is_none_is_told(path: Path, content: bytes) -> None:
    (path / MANIFEST).write_bytes(content)
    assert error_of(lambda: load_bundle(path)) == (
        f"{path}: MANIFEST.json is damaged; restore the bundle or train again"
    )


def test_a_bundle_without_a_training_part_is_told(tmp_path: Path, make_bundle: Any) -> None:
    save_bundle(tmp_path, make_bundle())
    assert error_of(lambda: load_training_state(tmp_path)) == (
        f"{tmp_path}: training/state.json is not part of this bundle"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(format_version=2),
            "{path}: format_version must be 1, but is 2; update dynamic-rnn",
        ),
        (
            lambda d: (d.pop("columns"), d.update(label=[])),
            "{path}/model.json: must hold config, columns, label, metrics, provenance, but columns, label is missing",
        ),
        (
            lambda d: d["config"].update(cell_type="gru"),
            "{path}: the fingerprint in model.json is not that of the weights and config beside it",
        ),
        (
            lambda d: d.pop("fingerprint"),
            "{path}: the fingerprint in model.json is not that of the weights and config beside it",
        ),
    ],
    ids=["format", "missing parts", "another config", "no fingerprint"],
)
def test_a_description_that_does_not_fit_is_told(path: Path, change: Any, message: str) -> None:
    edit(path, change)
    assert error_of(lambda: load_bundle(path)) == message.format(path=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "must be JSON, but: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"[1]", "must be a JSON mapping, but is a list"),
    ],
)
def test_a_description_that_is_none_is_told(path: Path, content: bytes, message: str) -> None:
    rewrite(path, MODEL, content)
    assert error_of(lambda: load_bundle(path)) == f"{path}/{MODEL}: {message}"


def test_weights_of_another_model_are_told(path: Path, make_bundle: Any) -> None:
    rewrite(path, WEIGHTS, save(make_bundle(seed=5).tensors))
    assert error_of(lambda: load_bundle(path)) == (
        f"{path}: the fingerprint in model.json is not that of the weights and config beside it"
    )


class Explosive:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [WEIGHTS, MODEL, MANIFEST])
def test_a_pickle_is_never_read(path: Path, tmp_path: Path, name: str) -> None:
    content = pickle.dumps(Explosive(tmp_path / "executed"))
    if name == MANIFEST:
        (path / name).write_bytes(content)
    else:
        rewrite(path, name, content)
    error_of(lambda: load_bundle(path))
    assert not (tmp_path / "executed").exists()
    pickle.loads(content)  # noqa: S301  (the proof that it would have)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("writes", range(5))
def test_a_bundle_is_there_whole_or_not_at_all(
    tmp_path: Path, make_bundle: Any, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    write, left = checkpoint.write_bytes, iter(range(writes))

    def full_disk(path: Any, content: bytes) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_bundle(tmp_path, make_bundle(), TRAINING)
    assert "has no MANIFEST.json" in error_of(lambda: load_bundle(tmp_path))


def test_weights_are_compared_name_by_name(make_bundle: Any) -> None:
    tensors = dict(make_bundle(num_units=[5, 3]).tensors)
    tensors["extra"] = tensors.pop("projection.bias")
    assert error_of(lambda: load_weights(make_bundle().network(), tensors)) == (
        "the weights do not fit the model: projection.bias is not in the bundle; extra is in the bundle, but not in "
        "this model; cell.0.weight_ih has shape (20, 15) in the bundle, but this config builds (16, 15); "
        "cell.0.weight_hh has shape (20, 5) in the bundle, but this config builds (16, 4); cell.0.bias has shape (20,) "
        "in the bundle, but this config builds (16,); cell.1.weight_ih has shape (12, 5) in the bundle, but this "
        "config builds (12, 4)"
    )


def test_a_bundle_shares_no_memory_with_the_network_it_came_from(make_bundle: Any) -> None:
    network = make_bundle().network()
    bundle = checkpoint.bundle_of(network, make_bundle().columns, make_bundle().label)
    before = bundle.fingerprint
    with torch.no_grad():
        network.projection.bias.add_(1)
    assert bundle.fingerprint == before


def test_what_is_declared_survives(tmp_path: Path, make_bundle: Any) -> None:
    save_bundle(tmp_path, make_bundle())
    kind = load_bundle(tmp_path).columns.columns.ordered("sequence")[1].source
    assert kind == Vocabulary(name="kind")
