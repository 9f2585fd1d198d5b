"""Settings files and overrides: how each word is read, what is refused, what reads back."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ConfigError
from model.settings import apply_overrides, load_settings
from model.settings.yaml_text import dump_plain, parse_yaml

# --- reading YAML ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1_000", 1000),
        ("0x1f", 31),
        ("0.5", 0.5),
        (".5", 0.5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("1.5e+3", 1500.0),
        (".inf", float("inf")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("007", "007"),
        ("12:30", "12:30"),
        ("2026-01-31", "2026-01-31"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("'3'", "3"),
        ("[1, a, null, 1e-3]", [1, "a", None, 0.001]),
        ("{a: 1, 2: b}", {"a": 1, 2: "b"}),
    ],
)
def test_a_plain_word_is_read_as_documented(text: str, value: Any) -> None:
    read = parse_yaml(text, where="here")
    assert (read, type(read)) == (value, type(value))


# PyYAML 6.0.4 tells keys of one character from longer ones when it merges, so each case is read with both.
BASES = "one: &one {X: 1, Y: 1}\ntwo: &two {X: 2, Z: 2}\n"
MERGES = {
    "a written key wins, above the merge": ("{X: 3, <<: *one}", {"X": 3, "Y": 1}),
    "a written key wins, below the merge": ("{<<: *one, X: 3}", {"X": 3, "Y": 1}),
    "the first of a list wins": ("{<<: [*one, *two]}", {"X": 1, "Y": 1, "Z": 2}),
    "the first of another list wins": ("{<<: [*two, *one]}", {"X": 2, "Y": 1, "Z": 2}),
    "the first of two merges wins": ("{<<: *one, Z: 3, <<: *two}", {"X": 1, "Y": 1, "Z": 3}),
    "a list before a merge": ("{<<: [*two], <<: *one, Y: 3}", {"X": 2, "Y": 3, "Z": 2}),
    "a written key wins over a list": ("{<<: [*one, *two], X: 3}", {"X": 3, "Y": 1, "Z": 2}),
    "what a parent writes wins over its parents": ("{<<: {<<: *one, X: 3}, Y: 4}", {"X": 3, "Y": 4}),
    "three deep": ("{<<: {<<: {<<: *one, X: 3}, Y: 4}, W: 5}", {"X": 3, "Y": 4, "W": 5}),
    "three deep, each writes the key": ("{<<: {<<: {<<: *one, X: 3}, X: 4}, X: 5}", {"X": 5, "Y": 1}),
    "a list in a list's parent": ("{<<: [{<<: [*two, *one], Y: 3}, *one]}", {"X": 2, "Y": 3, "Z": 2}),
    "one parent twice": ("{<<: [*one, *two, *one], <<: *one}", {"X": 1, "Y": 1, "Z": 2}),
    "a mapping inside": ("{<<: *one, W: {<<: *two, X: 3}}", {"X": 1, "Y": 1, "W": {"X": 3, "Z": 2}}),
    "a mapping is replaced whole": ("{<<: {X: {Y: 1}}, X: {Z: 2}}", {"X": {"Z": 2}}),
    "an empty list": ("{<<: [], X: 3}", {"X": 3}),
    "an anchor in its own mapping": ("&own {<<: *own, X: 3}", {"X": 3}),
    "numbers and strings are other keys": ("{<<: {1: X, '1': Y}, 2: Z}", {1: "X", "1": "Y", 2: "Z"}),
    "a number written otherwise is the same key": ("{<<: [{1: X}, {0x1: Y}], 0x1: Z}", {1: "Z"}),
}


@pytest.mark.parametrize("long", [False, True], ids=["short names", "long names"])
@pytest.mark.parametrize(("text", "value"), MERGES.values(), ids=MERGES)
def test_written_keys_win_over_merges_and_earlier_merges_over_later_ones(text: str, value: Any, long: bool) -> None:
    def named(part: str) -> str:
        return re.sub("[W-Z]", lambda letter: letter[0] * 9, part) if long else part

    read = parse_yaml(named(f"{BASES}merged: {text}\n"), where="here")["merged"]
    expected = ast.literal_eval(named(repr(value)))
    assert read == expected


def test_merge_keys_may_be_overridden_by_written_ones() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  x: 3\nc:\n  <<: *b\n  y: 4\n"
    assert parse_yaml(text, where="here")["c"] == {"x": 3, "y": 4}


def test_merged_keys_stand_where_they_were_merged() -> None:
    text = "one: &one {x: 1, yy: 1}\ntwo: &two {yy: 2, z: 2}\nmerged: {w: 3, yy: 3, <<: [*one, *two]}\n"
    assert list(parse_yaml(text, where="here")["merged"]) == ["yy", "z", "x", "w"]


def test_merges_of_merges_do_not_multiply() -> None:
    levels = [f"a{level + 1}: &a{level + 1} {{<<: [{', '.join([f'*a{level}'] * 9)}]}}" for level in range(20)]
    assert parse_yaml("\n".join(["a0: &a0 {x: 1}", *levels]), where="here")["a20"] == {"x": 1}


@pytest.mark.parametrize(
    ("text", "position", "fault"),
    [
        ("a: {<<: 3}", 9, "expected a mapping or list of mappings for merging, but found scalar"),
        ("a: {<<: [{b: 1}, 3]}", 18, "expected a mapping for merging, but found scalar"),
        ("a: {<<: [[{b: 1}]]}", 10, "expected a mapping for merging, but found sequence"),
        ("a: {<<: {b: 1}, [c]: 2}", 17, "found unhashable key"),
        ("a: {<<: {b: 1}, !!map c: 2}", 17, "found unhashable key"),
    ],
)
def test_a_wrong_merge_says_where(text: str, position: int, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, where="here")
    says = f"here, line 1, column {position}: must be valid YAML, but here is a fault: "
    assert str(caught.value) == f"{says}while constructing a mapping, {fault}"


def test_a_key_written_twice_is_refused_beside_a_merge() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: &a {x: 1}\nb:\n  x: 2\n  <<: *a\n  x: 3\n", where="here")
    says = "here, line 5, column 3: the key 'x' stands twice in one mapping, first on line 3; keep one of them"
    assert str(caught.value) == says


def test_a_file_becomes_a_mapping_with_its_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  epochs: 3\n  rate: 1e-3\n")
    assert load_settings(path, ["train.epochs=4"]) == {"train": {"epochs": 4, "rate": 0.001}}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_is_an_empty_mapping(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert load_settings(str(path), ["a=1"]) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n- 2\n", "{path}: must be a mapping of settings (`name: value`), but is [1, 2]"),
        (b"words\n", "{path}: must be a mapping of settings (`name: value`), but is 'words'"),
        (
            b"a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n",
            "{path}, line 5, column 3: the key 'c' stands twice in one mapping, first on line 3; keep one of them",
        ),
        (
            b"a: [1, 2\nb: 3\n",
            "{path}, line 2, column 2: must be valid YAML, but here is a fault: while parsing a flow "
            "sequence, expected ',' or ']', but got ':'",
        ),
        (
            b"a: 1\n\tb: 2\n",
            "{path}, line 2, column 1: must be valid YAML, but here is a fault: while scanning for the "
            "next token, found character '\\t' that cannot start any token",
        ),
        (
            b"a: !!python/object:os.system {}\n",
            "{path}, line 1, column 4: must be valid YAML, but here is a fault: could not determine a "
            "constructor for the tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
        (
            b"a: 1\n---\nb: 2\n",
            "{path}, line 2, column 1: must be valid YAML, but here is a fault: expected a single "
            "document in the stream, but found another document",
        ),
        (b"a: \xff\n", "{path}: must be YAML in UTF-8, but byte 3 is not"),
        (
            b"a: \x01\n",
            "{path}: must be YAML text, but unacceptable character #x0001: special characters are not "
            'allowed in "<unicode string>", position 3',
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert str(caught.value) == message.format(path=path)


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as missing:
        load_settings(tmp_path / "run.yaml")
    with pytest.raises(ConfigError) as directory:
        load_settings(tmp_path)
    says = "must be a YAML file, but cannot be read:"
    assert str(missing.value) == f"{tmp_path / 'run.yaml'}: {says} there is no such file"
    assert str(directory.value) == f"{tmp_path}: {says} Is a directory"


def test_a_number_python_refuses_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^here: must be YAML text, but Exceeds the limit"):
        parse_yaml("9" * 5000, where="here")


# --- overrides ---


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("a=3", {"a": 3}),
        ("a.b.c=x", {"a": {"b": {"c": "x"}}}),
        (" a.b = [64, 32]", {"a": {"b": [64, 32]}}),
        ("a=1e-3", {"a": 0.001}),
        ("a=", {"a": None}),
        ("a=''", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a='3'", {"a": "3"}),
        ("a={b: 1}", {"a": {"b": 1}}),
    ],
)
def test_an_override_is_read_as_yaml(override: str, changed: dict[str, Any]) -> None:
    assert apply_overrides({}, [override]) == changed


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("items.1.name=z", {"items": [{"name": "x"}, {"name": "z"}], "none": None, "keys": {0: 1.0}}),
        ("items.0=q", {"items": ["q", {"name": "y"}], "none": None, "keys": {0: 1.0}}),
        (
            "none.a=1",
            {"items": [{"name": "x"}, {"name": "y"}], "none": {"a": 1}, "keys": {0: 1.0}},
        ),
        ("keys.0=2", {"items": [{"name": "x"}, {"name": "y"}], "none": None, "keys": {0: 2}}),
    ],
)
def test_an_override_changes_a_copy(override: str, changed: dict[str, Any]) -> None:
    original = {"items": [{"name": "x"}, {"name": "y"}], "none": None, "keys": {0: 1.0}}
    assert apply_overrides(original, [override]) == changed
    assert original == {"items": [{"name": "x"}, {"name": "y"}], "none": None, "keys": {0: 1.0}}


def test_the_last_of_two_overrides_wins() -> None:
    assert apply_overrides({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "overrides: 'epochs' must have the form key=value, such as train.epochs=3"),
        ("=3", "overrides: '=3' must have the form key=value, such as train.epochs=3"),
        ("a..b=3", "overrides: 'a..b=3' must have the form key=value, such as train.epochs=3"),
        (
            "items.2=x",
            "overrides: items.2 cannot be set: items is a list, and '2' must be an index from 0 to 1",
        ),
        (
            "items.-1=x",
            "overrides: items.-1 cannot be set: items is a list, and '-1' must be an index from 0 to 1",
        ),
        (
            "items.name.x=x",
            "overrides: items.name cannot be set: items is a list, and 'name' must be an index from 0 to 1",
        ),
        (
            "empty.0=x",
            "overrides: empty.0 cannot be set: empty is a list, and '0' must be left out, since the list is empty",
        ),
        ("three.x=1", "overrides: three.x cannot be set, because three is 3, not a mapping"),
        (
            "files=*.parquet",
            "overrides: 'files=*.parquet' (quote a value with special signs), line 1, column 2: must be "
            "valid YAML, but here is a fault: while scanning an alias, expected alphabetic or numeric "
            "character, but found '.'",
        ),
    ],
)
def test_a_wrong_override_says_what_to_write(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"items": [1, 2], "empty": [], "three": 3}, [override])
    assert str(caught.value) == message


def test_all_wrong_overrides_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({}, ["a", "b=1", "c"])
    assert str(caught.value).split("\n") == [
        "overrides: 2 faults",
        "overrides: 'a' must have the form key=value, such as train.epochs=3",
        "overrides: 'c' must have the form key=value, such as train.epochs=3",
    ]


# --- writing ---

_KEYS = st.text()
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner), max_leaves=8))
def test_what_is_dumped_is_read_back(value: Any) -> None:
    assert parse_yaml(dump_plain(value), where="here") == value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.from_regex(r"[-+.0-9eExXinfatrulsyoT_:~]{1,8}", fullmatch=True))
def test_a_string_that_looks_like_a_number_stays_a_string(text: str) -> None:
    assert parse_yaml(dump_plain([text]), where="here") == [text]
    assert yaml.safe_load(dump_plain([text])) == [text]
