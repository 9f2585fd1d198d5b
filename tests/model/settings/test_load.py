"""Settings: what a YAML file and key=value become, and every fault's whole message."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from model.errors import ConfigError
from model.settings import (
    Settings,
    apply_overrides,
    build,
    describe,
    did_you_mean,
    dump_yaml,
    load_settings,
)


class Numeric(Settings):
    type: Literal["numeric"] = "numeric"
    name: str
    dimension: int | None = Field(default=None, ge=1)


class Vocabulary(Settings):
    type: Literal["vocabulary"] = "vocabulary"
    name: str
    keys: list[str] = Field(default=[], max_length=3)


Column = Annotated[Numeric | Vocabulary, Field(discriminator="type")]


class Schedule(StrEnum):
    constant = "constant"
    cosine = "cosine"


class Optimizer(Settings):
    name: str = "Adam"
    learning_rate: float = Field(default=0.01, gt=0, le=10)


class Train(Settings):
    epochs: int = Field(default=10, ge=1, description="Passes over the rows. Each ends with a validation.")
    batch_sequences: int = Field(default=32, multiple_of=8)
    keep: float = Field(default=0.5, lt=1)
    shuffle: bool = True
    schedule: Schedule = Schedule.constant
    optimizer: str | Optimizer = "Adam"

    @field_validator("keep")
    @classmethod
    def _no_quarter(cls, keep: float) -> float:
        if keep == 0.25:
            raise ValueError("train.keep must not be a quarter")
        if keep == 0.75:
            raise ValueError("three quarters are\n  too much")
        return keep


class Network(Settings):
    cell: Literal["lstm", "gru"] = "lstm"
    num_units: list[int] | int = 64
    num_classes: Literal["auto"] | int = "auto"
    labels: Literal["auto"] | list[str | int] = "auto"
    columns: list[Column] = Field(default=[])
    class_weights: dict[int, float] = Field(default={})
    pair: tuple[int, str] = (1, "a")
    layers: list[int] = Field(default=[1, 1], min_length=2)


class Data(Settings):
    train: str = Field(description="Parquet files to train on. A directory, too.")
    code: str = Field(default="x-1", pattern="^x-", max_length=5, min_length=2)
    cache: Path = Path("/tmp/cache")
    api_key: SecretStr | None = None
    more_keys: list[SecretStr] = Field(default=[])


class Run(Settings):
    data: Data
    train: Train = Train()
    network: Network = Network()
    extra: Train | None = None
    tune: dict[str, Any] = Field(default={})
    levels: set[int] = Field(default_factory=set)
    by_name: dict[str, Optimizer] = Field(default={})
    short: str = Field(default="s", alias="abbreviated")

    @model_validator(mode="after")
    def _parts_fit(self) -> Run:
        if self.data.train == "nowhere":
            raise ConfigError("data.train and the rest must fit, but nowhere fits nothing")
        if self.data.train == "assert":
            raise AssertionError("an assertion's text")
        return self


GOOD: dict[str, Any] = {"data": {"train": "a.parquet"}}


def faults(mapping: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(Run, mapping, where="run.yaml")
    return str(caught.value).split("\n")


def good_but(*overrides: str) -> dict[str, Any]:
    return apply_overrides(GOOD, overrides)


# --- building ---


def test_a_mapping_becomes_a_config() -> None:
    config = build(
        Run,
        good_but("train.epochs=3", "train.shuffle=no", "network.num_units=[64, 32]", "abbreviated=t"),
        where="run.yaml",
    )
    assert (config.train.epochs, config.train.shuffle) == (3, False)
    assert (config.network.num_units, config.short) == ([64, 32], "t")


def test_settings_are_frozen_and_checked_in_their_defaults() -> None:
    class Wrong(Settings):
        model_size: int = Field(default=0, ge=1)

    with pytest.raises(ValidationError):
        Wrong()
    with pytest.raises(ValidationError, match="frozen"):
        Train().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # bounds
        ("train.epochs=0", "train.epochs must be at least 1, but is 0"),
        ("train.optimizer={learning_rate: 0}",
         "train.optimizer.learning_rate must be greater than 0, but is 0"),
        ("train.optimizer={learning_rate: 11}",
         "train.optimizer.learning_rate must be at most 10, but is 11"),
        ("train.keep=1", "train.keep must be less than 1, but is 1"),
        ("train.keep=.nan", "train.keep must be a finite number, but is nan"),
        ("train.batch_sequences=9", "train.batch_sequences must be a multiple of 8, but is 9"),
        ("network.columns=[{type: numeric, name: x, dimension: 0}]",
         "network.columns.0.dimension must be at least 1, but is 0"),
        # types
        ("train.epochs=three", "train.epochs must be an integer, but is 'three'"),
        ("train.epochs=1.5", "train.epochs must be an integer, but is 1.5"),
        ("train.epochs=[1]", "train.epochs must be an integer, but is [1]"),
        ("train.epochs=", "train.epochs must be an integer, but is null"),
        ("train.epochs=true", "train.epochs must be an integer, but is true"),
        ("train.keep=false", "train.keep must be a number, but is false"),
        ("train.keep=half", "train.keep must be a number, but is 'half'"),
        ("train.keep=[]", "train.keep must be a number, but is []"),
        ("train.shuffle=maybe", "train.shuffle must be true or false, but is 'maybe'"),
        ("train.shuffle=[]", "train.shuffle must be true or false, but is []"),
        ("train=3", "train must be a mapping, but is 3"),
        ("by_name=3", "by_name must be a mapping, but is 3"),
        ("by_name.x=3", "by_name.x must be a mapping, but is 3"),
        ("network.columns=x", "network.columns must be a list, but is 'x'"),
        ("network.columns=[3]", "network.columns.0 must be a mapping, but is 3"),
        ("network.pair=3", "network.pair must be a list, but is 3"),
        ("network.pair=[a, b]", "network.pair.0 must be an integer, but is 'a'"),
        ("levels=3", "levels must be a list, but is 3"),
        ("data.cache=3", "data.cache must be a path, but is 3"),
        ("data.train=3", "data.train must be a string, but is 3; write it in quotes: '3'"),
        ("data.train=true", "data.train must be a string, but is true; write it in quotes: 'true'"),
        ("data.train={a: b}", "data.train must be a string, but is a mapping"),
        ("data.api_key=[12345]", "data.api_key must be a string, but is a secret"),
        ("data.more_keys=hush", "data.more_keys must be a list, but is a secret"),
        ("network.class_weights={a: 1}", "the key network.class_weights.a must be an integer, but is 'a'"),
        ("network.class_weights={0: a}", "network.class_weights.0 must be a number, but is 'a'"),
        ("network.class_weights={0: true}", "network.class_weights.0 must be a number, but is true"),
        ("network.num_units=[1, true]", "network.num_units.1 must be an integer, but is true"),
        # lengths and forms
        ("network.columns=[{type: vocabulary, name: x, keys: [a, b, c, d]}]",
         "network.columns.0.keys must have at most 3 items, but has 4"),
        ("network.layers=[]", "network.layers must have at least 2 items, but has none"),
        ("network.layers=[1]", "network.layers must have at least 2 items, but has 1"),
        ("data.code=y", "data.code must be a string of at least 2 characters, but is 'y'"),
        ("data.code=x-6789", "data.code must be a string of at most 5 characters, but is 'x-6789'"),
        ("data.code=yyy", "data.code must be a string of the form ^x-, but is 'yyy'"),
        # choices
        ("network.cell=lsmt", "network.cell must be one of lstm, gru, but is 'lsmt'; did you mean lstm?"),
        ("network.cell=LSTM", "network.cell must be one of lstm, gru, but is 'LSTM'; did you mean lstm?"),
        ("network.cell=transformer", "network.cell must be one of lstm, gru, but is 'transformer'"),
        ("network.cell=3", "network.cell must be one of lstm, gru, but is 3"),
        ("train.schedule=cosin",
         "train.schedule must be one of constant, cosine, but is 'cosin'; did you mean cosine?"),
        # unions
        ("network.num_classes=aut",
         "network.num_classes must be auto or an integer, but is 'aut'; did you mean auto?"),
        ("network.num_classes=[1]", "network.num_classes must be auto or an integer, but is [1]"),
        ("network.num_units=many", "network.num_units must be a list or an integer, but is 'many'"),
        ("network.num_units=[1, a]", "network.num_units.1 must be an integer, but is 'a'"),
        ("network.labels=[a, 1.5]", "network.labels.1 must be a string or an integer, but is 1.5"),
        ("network.labels=3", "network.labels must be auto or a list, but is 3"),
        ("train.optimizer=3", "train.optimizer must be a string or a mapping, but is 3"),
        ("train.optimizer={nam: Adam}",
         "train.optimizer.nam is not a setting; did you mean train.optimizer.name?"),
        ("network.columns=[{type: numerc, name: x}]",
         "network.columns.0.type must be one of numeric, vocabulary, but is 'numerc'; did you mean numeric?"),
        ("network.columns=[{name: x}]",
         "network.columns.0.type must be one of numeric, vocabulary, but is missing"),
        # unknown and missing keys
        ("train.epoch=1", "train.epoch is not a setting; did you mean train.epochs?"),
        ("train.Epochs=1", "train.Epochs is not a setting; did you mean train.epochs?"),
        ("network.columns=[{type: numeric, name: x, dimensions: 1}]",
         "network.columns.0.dimensions is not a setting; did you mean network.columns.0.dimension?"),
        ("network.columns=[{type: numeric, name: x, keys: []}]",
         "network.columns.0.keys is not a setting of type numeric, but of vocabulary"),
        ("num_units=3", "num_units is not a setting; did you mean network.num_units?"),
        ("network.learning_rate=1",
         "network.learning_rate is not a setting; did you mean train.optimizer.learning_rate or "
         "extra.optimizer.learning_rate or by_name.NAME.learning_rate?"),
        ("train.optimizer={zzz: 1}",
         "train.optimizer.zzz is not a setting; train.optimizer has name, learning_rate"),
        ("zzz=1",
         "zzz is not a setting; the top level has data, train, network, extra, tune, levels, by_name, "
         "abbreviated"),
        ("short=1",
         "short is not a setting; the top level has data, train, network, extra, tune, levels, by_name, "
         "abbreviated"),
        ("data={}", "data.train must be given, but is missing (Parquet files to train on)"),
        ("network.columns=[{type: numeric}]", "network.columns.0.name must be given, but is missing"),
        # a validator's own words
        ("train.keep=0.25", "train.keep must not be a quarter"),
        ("train.keep=0.75", "train.keep: three quarters are too much"),
        ("data.train=nowhere", "data.train and the rest must fit, but nowhere fits nothing"),
        ("data.train=assert", "an assertion's text"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_in_the_house_voice(override: str, message: str) -> None:
    assert faults(good_but(override)) == [f"run.yaml: {message}"]


@pytest.mark.parametrize("value", [3, [1], "text", None])
def test_a_config_that_is_no_mapping_is_refused(value: Any) -> None:
    shown = {3: "3", "text": "'text'", None: "null"}.get(value if value != [1] else 0, "[1]")
    assert faults(value) == [f"run.yaml: the top level must be a mapping, but is {shown}"]


def test_keys_must_be_strings() -> None:
    assert faults(GOOD | {1: 2}) == ["run.yaml: the key 1 must be a string; write it in quotes: '1'"]


def test_all_faults_are_told_at_once() -> None:
    mapping = {
        "data": {"code": 3},
        "train": {"epochs": True, "epoch": 3, "schedule": "linear"},
        "network": {"columns": [{"type": "numeric"}, {"type": "text"}]},
    }
    assert faults(mapping) == [
        "run.yaml: 7 faults",
        "run.yaml: train.epochs must be an integer, but is true",
        "run.yaml: data.train must be given, but is missing (Parquet files to train on)",
        "run.yaml: data.code must be a string, but is 3; write it in quotes: '3'",
        "run.yaml: train.schedule must be one of constant, cosine, but is 'linear'",
        "run.yaml: train.epoch is not a setting; did you mean train.epochs?",
        "run.yaml: network.columns.0.name must be given, but is missing",
        "run.yaml: network.columns.1.type must be one of numeric, vocabulary, but is 'text'",
    ]


def test_of_very_many_faults_the_first_are_told() -> None:
    told = faults(GOOD | {f"setting_{number:02}": number for number in range(25)})
    assert told[0] == "run.yaml: 25 faults"
    assert [line.split()[1] for line in told[1:-1]] == [f"setting_{number:02}" for number in range(20)]
    assert told[-1] == "run.yaml: and 5 more"


def test_a_long_value_is_shown_short() -> None:
    [many] = faults(good_but(f"train.epochs={list(range(100))}"))
    [long] = faults(good_but(f"train.epochs={'x' * 100}"))
    assert many == "run.yaml: train.epochs must be an integer, but is a list of 100 items"
    assert long == f"run.yaml: train.epochs must be an integer, but is '{'x' * 56}..."


def test_a_fault_pydantic_words_itself_keeps_a_readable_line() -> None:
    class Rare(Settings):
        day: date = date(2026, 1, 31)
        price: Decimal = Decimal(1)

    with pytest.raises(ConfigError) as caught:
        build(Rare, {"day": "x", "price": [1]}, where="r")
    assert str(caught.value).split("\n") == [
        "r: 2 faults",
        "r: day must be a valid date or datetime, input is too short, but is 'x'",
        "r: price: Decimal input should be an integer, float, string or Decimal object; it is [1]",
    ]


def test_the_nearest_choice_is_suggested_or_none() -> None:
    assert did_you_mean("GRU", ["lstm", "gru"]) == "; did you mean gru?"
    assert did_you_mean("transformer", ["lstm", "gru"]) == ""


# --- writing and describing ---


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.epochs=3", "train.optimizer={learning_rate: 1e-5}", "data.train='1e-3'", "levels=[3, 1]"],
        ["network.columns=[{type: vocabulary, name: 'yes', keys: ['007', 'null', '1e5']}]"],
        ["tune={a: {1: [1, 2]}, b: null, c: '2026-01-31'}", "data.cache=relative/path", "abbreviated='~'"],
        ["train.schedule=cosine", "extra={}", "network.class_weights={0: 1.5}", "network.num_classes=7"],
    ],
)
def test_a_dumped_config_builds_an_equal_one(tmp_path: Path, overrides: list[str]) -> None:
    config = build(Run, good_but(*overrides), where="run.yaml")
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_yaml(config))
    assert build(Run, load_settings(path), where="dumped.yaml") == config


def test_a_secret_is_not_written() -> None:
    config = build(Run, good_but("data.api_key=hush"), where="run.yaml")
    with pytest.raises(yaml.representer.RepresenterError):
        dump_yaml(config)


def test_a_description_names_every_setting_with_type_and_default() -> None:
    class Small(Settings):
        data: Data
        train: Train = Train(epochs=5)
        columns: list[Column] = Field(default=[], description="The inputs of the network.")
        weights: dict[str, float] = Field(default={"a": 1.0})
        note: str | None = None

    assert describe(Small) == (
        """\
data:
  # Parquet files to train on. A directory, too.
  train:  # required; string
  code: x-1  # string, of length at least 2, of length at most 5, of the form ^x-
  cache: /tmp/cache  # path
  api_key: null  # secret string or null
  more_keys: []  # list of secret string
train:
  # Passes over the rows. Each ends with a validation.
  epochs: 5  # integer, at least 1
  batch_sequences: 32  # integer, a multiple of 8
  keep: 0.5  # number, less than 1
  shuffle: true  # true or false
  schedule: constant  # one of constant, cosine
  optimizer: Adam  # string or settings
    # in optimizer:
    #   name: Adam  # string
    #   learning_rate: 0.01  # number, greater than 0, at most 10
# The inputs of the network.
columns: []  # list of settings
  # in columns.0:
  #   type: numeric  # numeric
  #   name:  # required; string
  #   dimension: null  # integer or null, at least 1
  # in columns.0:
  #   type: vocabulary  # vocabulary
  #   name:  # required; string
  #   keys: []  # list of string, of length at most 3
weights: {a: 1.0}  # mapping of string to number
note: null  # string or null
"""
    )


def test_a_description_is_yaml_that_builds_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "help.yaml"
    path.write_text(describe(Run))
    mapping = load_settings(path, ["data.train=a.parquet"])
    assert build(Run, mapping, where="help.yaml") == build(Run, GOOD, where="run.yaml")


def test_settings_load_no_ray_torch_or_http() -> None:
    heavy = "{'ray', 'torch', 'pyarrow', 'fastapi', 'httpx'}"
    code = f"import sys, model.settings; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
