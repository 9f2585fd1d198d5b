"""Passes of tasks over numbers on a real Ray: order, tasks of several numbers, and mistakes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import ray.cloudpickle

from model.errors import DataError
from pipelines.tasks.map import TASK_BYTES, fragments_a_task, over_items, over_numbers
from pipelines.tasks.task import NumberedTask

pytestmark = pytest.mark.usefixtures("local_ray", "pickled_by_value")


@pytest.fixture(scope="module")
def pickled_by_value() -> Iterator[None]:
    """No task could import a test."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


class Tell:
    """Writes down which numbers are computed in which call of a task, and gives their squares."""

    def __init__(self, directory: str, wrong: int | None = None) -> None:
        self.directory = directory
        self.wrong = wrong

    def __call__(self, number: int) -> int:
        if number == self.wrong:
            raise DataError("is wrong", file="f.parquet", row=number)
        with Path(self.directory, f"{os.getpid()}-{ray.get_runtime_context().get_task_id()}").open("a") as told:
            told.write(f"{number}\n")
        return number * number

    def tasks(self) -> list[list[int]]:
        """The numbers of each task."""
        return sorted([int(line) for line in path.read_text().split()] for path in Path(self.directory).iterdir())


@pytest.mark.parametrize(
    ("each", "tasks"),
    [(1, [[3], [1], [4], [7], [5]]), (2, [[3, 1], [4, 7], [5]]), (9, [[3, 1, 4, 7, 5]])],
)
def test_results_come_in_order_from_tasks_of_several_numbers(tmp_path: Path, each: int, tasks: list[list[int]]) -> None:
    tell = Tell(str(tmp_path))
    numbers = [3, 1, 4, 7, 5]
    assert list(over_numbers(NumberedTask(tell), numbers, each=each)) == [(n, n * n) for n in numbers]
    assert tell.tasks() == sorted(tasks)


def test_a_mistake_is_raised_as_itself_and_nothing_is_tried_again(tmp_path: Path) -> None:
    tell = Tell(str(tmp_path), wrong=2)
    with pytest.raises(DataError) as told:
        list(over_numbers(NumberedTask(tell), range(4), each=2))
    assert (told.value.problem, told.value.file, told.value.row) == ("is wrong", "f.parquet", 2)
    computed = [number for task in tell.tasks() for number in task]
    assert len(computed) == len(set(computed))


def test_without_numbers_or_items_there_is_no_pass() -> None:
    assert list(over_numbers(NumberedTask(Tell("nowhere")), [])) == []
    assert list(over_items(Tell, (), [])) == []


def test_row_groups_share_a_task_up_to_its_bytes_while_every_cpu_has_some() -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    assert fragments_a_task(10_000, 10_000 * (TASK_BYTES // 5)) == 5
    assert fragments_a_task(10_000, 10_000 * TASK_BYTES * 3) == 1
    assert fragments_a_task(8 * cpus, 1) == 2
    assert fragments_a_task(1, 0) == 1
