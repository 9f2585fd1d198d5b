"""TensorFlow's checkpoint files: real ones, and ones made by hand for what real ones do not show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model.errors import CheckpointError
from model.tf1.checkpoint import TfCheckpoint, read_variables, slice_key
from model.tf1.sstable import MAGIC, masked_crc32c

GOLDEN = Path(__file__).parents[2] / "golden"
REAL = GOLDEN / "tf_partitioned"  # written by TensorFlow 2.21: two shards, partitioned in rows and in columns


def number(value: int) -> bytes:
    """A varint."""
    value &= 2**64 - 1
    more = bytearray()
    while value > 0x7F:
        more.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*more, value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protocol buffer of numbers and bytes."""
    parts = []
    for tag, value in fields:
        if isinstance(value, int):
            parts.append(number(tag << 3) + number(value))
        else:
            parts.append(number(tag << 3 | 2) + number(len(value)) + value)
    return b"".join(parts)


def block(items: list[tuple[bytes, bytes]], *, snappy: bool = False) -> bytes:
    body = b"".join(number(0) + number(len(key)) + number(len(value)) + key + value for key, value in items)
    body += (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    if snappy:
        body = pa.Codec("snappy").compress(body, asbytes=True)
    body += bytes([int(snappy)])
    return body + masked_crc32c(body).to_bytes(4, "little")


def table(items: list[tuple[bytes, bytes]], *, snappy: bool = False) -> bytes:
    data = block(items, snappy=snappy)
    index = block([(items[-1][0], number(0) + number(len(data) - 5))])
    footer = number(0) + number(0) + number(len(data)) + number(len(index) - 5)
    return data + index + footer.ljust(40, b"\0") + MAGIC


def entry(values: np.ndarray, offset: int = 0, *, dtype: int = 1, crc: int | None = None) -> bytes:
    content = values.tobytes()
    shape = b"".join(message((2, message((1, size)))) for size in values.shape)
    checksum = masked_crc32c(content) if crc is None else crc
    found = message((1, dtype), (2, shape), (4, offset), (5, len(content)))
    return found + number(6 << 3 | 5) + checksum.to_bytes(4, "little")


def sliced(shape: tuple[int, ...], *slices: tuple[tuple[int, int], ...]) -> bytes:
    """The entry of a partitioned variable; a length of −1 stands for all of a dimension, as TensorFlow leaves it."""
    extents = [
        b"".join(message((1, b"" if length == -1 else message((1, start), (2, length)))) for start, length in each)
        for each in slices
    ]
    dims = b"".join(message((2, message((1, size)))) for size in shape)
    return message((1, 1), (2, dims), *((7, each) for each in extents))


Writer = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """write(entries, data): a checkpoint of one shard; its prefix."""

    def make(entries: dict[bytes, bytes], data: bytes, *, endianness: int = 0, snappy: bool = False) -> str:
        header = (b"", message((1, 1), (2, endianness)))
        index = table([header, *sorted(entries.items())], snappy=snappy)
        (tmp_path / "m.index").write_bytes(index)
        (tmp_path / "m.data-00000-of-00001").write_bytes(data)
        return str(tmp_path / "m")

    return make


def test_a_real_partitioned_checkpoint_in_two_shards_is_read_to_the_bit() -> None:
    found = read_variables(REAL)  # its `checkpoint` file names another machine's path
    assert isinstance(found, TfCheckpoint)
    assert found.skipped == ("words",)
    with np.load(REAL / "expected.npz") as expected:
        assert sorted(found) == sorted(expected.files)
        for name, values in found.items():
            assert values.dtype == expected[name].dtype
            np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("named", ["model.ckpt-1", "model.ckpt-1.index", "model.ckpt-1.data-00001-of-00002"])
def test_a_checkpoint_is_found_by_its_prefix_and_by_each_of_its_files(named: str) -> None:
    assert read_variables(REAL / named)["step"].shape == ()


def test_a_directory_without_the_text_file_may_hold_one_checkpoint_but_not_two(tmp_path: Path) -> None:
    for name in ("model.ckpt-1.index", "model.ckpt-1.data-00000-of-00002", "model.ckpt-1.data-00001-of-00002"):
        shutil.copy(REAL / name, tmp_path)
    assert "rows" in read_variables(tmp_path)
    shutil.copy(REAL / "model.ckpt-1.index", tmp_path / "model.ckpt-2.index")
    with pytest.raises(CheckpointError, match=r"name one of model\.ckpt-1, model\.ckpt-2"):
        read_variables(tmp_path)


def test_a_saved_model_is_read(tmp_path: Path, write: Writer) -> None:
    write({b"a": entry(np.arange(3, dtype="<f4"))}, np.arange(3, dtype="<f4").tobytes())
    (tmp_path / "export" / "variables").mkdir(parents=True)
    (tmp_path / "export" / "saved_model.pb").touch()
    for ending in ("index", "data-00000-of-00001"):
        shutil.copy(tmp_path / f"m.{ending}", tmp_path / "export" / "variables" / f"variables.{ending}")
    np.testing.assert_array_equal(read_variables(tmp_path / "export")["a"], [0, 1, 2])


def test_numbers_of_the_ordered_code_are_tensorflows() -> None:
    # The codes of TensorFlow's own ordered_code tests.
    codes = {0: "80", -1: "7f", 63: "bf", -64: "40", 64: "c040", -65: "3fbf", 8191: "dfff", 8192: "e02000"}
    for start, code in codes.items():
        assert slice_key("a\0", ((start, 0),)) == b"\0a\0\xff\0\1" + b"\1\1" + bytes.fromhex(code) + b"\x80"


def test_snappy_blocks_and_big_endian_values_are_read(write: Writer) -> None:
    values = np.arange(6, dtype=">f4").reshape(2, 3)
    found = read_variables(write({b"a": entry(values)}, values.tobytes(), endianness=1, snappy=True))
    np.testing.assert_array_equal(found["a"], values)
    assert found["a"].dtype == np.dtype("=f4")


def test_a_slice_may_take_a_dimension_whole(write: Writer) -> None:
    top, rest = np.ones((1, 2), "<f4"), np.full((2, 2), 3, "<f4")
    parts: list[tuple[tuple[int, int], ...]] = [((0, 1), (0, -1)), ((1, 2), (0, -1))]
    entries = {
        b"a": sliced((3, 2), *parts),
        slice_key("a", parts[0]): entry(top),
        slice_key("a", parts[1]): entry(rest, 8),
    }
    found = read_variables(write(entries, top.tobytes() + rest.tobytes()))
    assert list(found) == ["a"]
    np.testing.assert_array_equal(found["a"], [[1, 1], [3, 3], [3, 3]])


def test_missing_and_overhanging_slices_are_told(write: Writer) -> None:
    part, values = ((0, 1), (0, -1)), np.ones((1, 2), "<f4")
    prefix = write({b"a": sliced((2, 2), part), slice_key("a", part): entry(values)}, values.tobytes())
    with pytest.raises(CheckpointError, match="the slices of variable 'a' must hold its 4 values, but hold 2"):
        read_variables(prefix)["a"]
    prefix = write({b"a": sliced((1, 2), part)}, b"")
    with pytest.raises(CheckpointError, match="a slice of variable 'a' is missing"):
        read_variables(prefix)["a"]


def test_each_cut_of_the_files_is_an_error_of_ours(tmp_path: Path) -> None:
    copy = tmp_path / "c"
    shutil.copytree(REAL, copy)
    for file in sorted(copy.glob("model.ckpt-1.*")):
        whole = file.read_bytes()
        for kept in range(0, len(whole) - 12, 7):  # the last bytes may be a string, which is not read
            file.write_bytes(whole[:kept])
            with pytest.raises(CheckpointError, match=r"copy (it|the checkpoint) anew"):
                dict(read_variables(copy))
        file.write_bytes(whole)


def test_each_changed_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    copy = tmp_path / "c"
    shutil.copytree(REAL, copy)
    with np.load(REAL / "expected.npz") as arrays:
        expected = {name: arrays[name] for name in arrays.files}
    noticed = 0
    for file in sorted(copy.glob("model.ckpt-1.*")):
        whole = file.read_bytes()
        for place in range(0, len(whole), 11):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            try:
                found = dict(read_variables(copy))
            except CheckpointError:
                noticed += 1
            else:  # strings, the metaindex and unused bytes of the footer are not read
                assert all(np.array_equal(found[name], expected[name]) for name in expected)
        file.write_bytes(whole)
    assert noticed > 100


def test_a_missing_shard_names_the_variable_and_leaves_the_others(tmp_path: Path) -> None:
    copy = tmp_path / "c"
    shutil.copytree(REAL, copy)
    (copy / "model.ckpt-1.data-00001-of-00002").unlink()
    found = read_variables(copy)
    assert found["rows"].shape == (10, 3)
    with pytest.raises(CheckpointError, match="00001-of-00002: must be there, for it holds variable 'columns'"):
        found["columns"]


def test_a_lying_entry_is_refused(write: Writer) -> None:
    values = np.ones(4, "<f4")
    prefix = write({b"a": entry(values, dtype=2)}, values.tobytes())
    with pytest.raises(CheckpointError, match="variable 'a' must hold float64 of shape"):
        read_variables(prefix)["a"]
    prefix = write({b"a": entry(values, crc=1)}, values.tobytes())
    with pytest.raises(CheckpointError, match="variable 'a' is damaged"):
        read_variables(prefix)["a"]


def test_the_old_format_and_other_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt-3").write_bytes(table([(b"", b"old")]))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-3"\n')
    for path in (tmp_path, tmp_path / "model.ckpt-3"):
        with pytest.raises(CheckpointError, match="but is one of format V1"):
            read_variables(path)
    with pytest.raises(CheckpointError, match=r"ckpt\.index is not there; did you mean model\.ckpt-1\?"):
        read_variables(REAL / "model.ckpt")
    (tmp_path / "checkpoint").write_text("nothing\n")
    with pytest.raises(CheckpointError, match="checkpoint: must name a checkpoint, but does not"):
        read_variables(tmp_path)


def test_an_npz_gives_its_arrays_or_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    np.savez(path, **{"rnn/a": np.ones(2)})
    assert read_variables(path).keys() == {"rnn/a"}
    np.savez(path, **{"weights/rnn/a": np.ones(2), "infer/scores": np.ones(1)})
    assert read_variables(path).keys() == {"rnn/a"}
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"must be an \.npz"):
        read_variables(path)
    np.savez(path, a=np.array([{}], object))
    with pytest.raises(CheckpointError, match=r"must be a whole \.npz of plain arrays"):
        read_variables(path)


@pytest.mark.parametrize(("content", "checksum"), [(b"", 0), (b"abc", 0x364B3FB7), (b"123456789", 0xE3069283)])
def test_checksums_are_the_published_ones_masked(content: bytes, checksum: int) -> None:
    rotated = checksum >> 15 | (checksum & 0x7FFF) << 17
    assert masked_crc32c(content) == (rotated + 0xA282EAD8) % 2**32
