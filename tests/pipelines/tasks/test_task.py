"""Messages of tasks: plain data, arrays, and mistakes come back as they went in. No Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.errors import DataError
from pipelines.tasks.task import NumberedTask, from_message, to_message

SENT: dict[str, Any] = {
    "lengths": np.arange(5, dtype=np.int32),
    "text": "a\nb ü",
    "deep": [{"used": np.array([True, False, True])}, None, 0.1, {"array": [1]}],
    "empty": np.zeros(0, np.float64),
}


def test_arrays_come_back_among_plain_data_with_their_types() -> None:
    found = from_message(to_message(lambda: SENT))
    assert found["lengths"].dtype == np.int32
    assert found["lengths"].tolist() == [0, 1, 2, 3, 4]
    assert found["deep"][0]["used"].tolist() == [True, False, True]
    assert found["deep"][1:] == [None, 0.1, {"array": [1]}]
    assert (found["empty"].dtype, len(found["empty"])) == (np.float64, 0)
    assert (found["text"], list(found)) == ("a\nb ü", ["lengths", "text", "deep", "empty"])
    found["lengths"][0] = 7  # its own memory, not the message's


def test_a_length_takes_its_four_bytes_on_its_way() -> None:
    lengths = np.full(100_000, 123_456, np.int32)
    assert len(to_message(lambda: {"lengths": lengths})) - lengths.nbytes < 100


def test_a_mistake_travels_as_a_value() -> None:
    def compute() -> None:
        raise DataError("is wrong", file="f.parquet", row=3)

    batch = {"id": np.array([4])}
    (message,) = NumberedTask(lambda number: compute())(batch)["result"]
    with pytest.raises(DataError, match=r"^f\.parquet, row 3: is wrong$"):
        from_message(message)
