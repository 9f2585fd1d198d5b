"""What `inspect --write` proposes, trained as it is: how far it goes from the most frequent class to the best possible.

    python benchmarks/proposals.py [--quick] [--json FILE] [--case NAME ...]

Each case is a generator whose best answers are known: next items of sessions with ties in time (ids as strings and as
integers), sessions whose hits are structs, a process log with colons in names and values, events split by time with a
class that comes late, and lists of two levels as older writers leave them. Events are prepared, inspected, trained by
the proposal untouched, and evaluated on rows made apart. The value is (accuracy − most frequent) / (best − most
frequent): 0 is a model that has learned nothing, 1 one that knows the generator. Seconds are those of all four steps,
in a Ray that runs already.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # else `import model` would find a file of this directory

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from benchmarks._common import Measure, at_least, at_most, told  # noqa: E402

HALF_WAY, MOST_SECONDS = 0.5, 120.0
QUICK = ("next item, ids as integers", "two-level lists")


@dataclass(frozen=True)
class Answers:
    """Accuracies on the held-out rows: of the most frequent class, and of whoever knows the generator."""

    frequent: float
    best: float


@dataclass(frozen=True)
class Case:
    """`write(directory, random)` writes `train.parquet` and, unless they are split by time, `test.parquet`.

    They hold events, made to sequences by the settings `prepare`, or sequences where it is None.
    """

    write: Callable[[Path, np.random.Generator], Answers]
    prepare: dict[str, Any] | None
    label: str | None = None


def main() -> None:
    options = parsed()
    names = options.case or (QUICK if options.quick else CASES)
    told([each for name in names for each in measures(name)], "Proposals, trained as they are", options.json)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object a measure and line")
    parser.add_argument("--quick", action="store_true", help="at most a minute or so: two cases")
    parser.add_argument("--case", action="append", choices=list(CASES), help="this case alone (repeatable)")
    return parser.parse_args()


# The measure ------------------------------------------------------------------------------------------------------


def measures(name: str) -> list[Measure]:
    """Writes a case's rows, and says how far the proposed run comes and in what time."""
    from pipelines.cluster.capacity import logical_cpus_for
    from pipelines.cluster.session import ray_session

    case = CASES[name]
    with (
        tempfile.TemporaryDirectory(prefix="proposals-") as directory,
        ray_session(logical_cpus=logical_cpus_for(psutil.cpu_count() or 1)),
    ):
        answers = case.write(Path(directory), np.random.default_rng(0))
        began = time.perf_counter()
        accuracy = accuracy_of(case, Path(directory))
        seconds = time.perf_counter() - began
    way = (accuracy - answers.frequent) / (answers.best - answers.frequent)
    detail = f"accuracy {accuracy:.3f}, most frequent {answers.frequent:.3f}, best {answers.best:.3f}"
    return [
        at_least(f"{name}: way to the best", way, "", HALF_WAY, detail),
        at_most(f"{name}: seconds", seconds, "s", MOST_SECONDS),
    ]


def accuracy_of(case: Case, directory: Path) -> float:
    """Of the run that is proposed, on the held-out rows."""
    from pipelines.config import load_run
    from pipelines.evaluate import evaluate
    from pipelines.inspect.run import inspect_data
    from pipelines.prepare.run import prepare
    from pipelines.prepare.settings import PrepareSettings
    from pipelines.train.run import train

    data, test = directory / "train.parquet", directory / "test.parquet"
    if case.prepare is not None:
        settings = PrepareSettings(**case.prepare)
        prepare(data, directory / "sequences", settings)
        data = directory / "sequences"
        if test.exists():
            prepare(test, directory / "test", settings)
        test = directory / "test" if test.exists() else data / "test"
    proposal = inspect_data(str(data), label=case.label).proposal
    assert proposal.text is not None, proposal.reason
    (directory / "run.yaml").write_text(proposal.text, encoding="utf-8")
    run = load_run(str(directory / "run.yaml"), [f"output={directory / 'runs'}"])
    train(run)
    return evaluate(run.directory, str(test))["accuracy"]


# Chains of events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """A Markov chain: `next_KK` are the probabilities of each state's next one."""

    next_KK: np.ndarray

    def walk(self, random: np.random.Generator, walks: int, steps: int, start: int | None = None) -> np.ndarray:
        """States [walks, steps]."""
        states = np.zeros((walks, steps), int)
        states[:, 0] = random.integers(0, len(self.next_KK), walks) if start is None else start
        sums = np.cumsum(self.next_KK, axis=1)
        for step in range(1, steps):
            drawn = random.random((walks, 1))
            states[:, step] = (drawn > sums[states[:, step - 1]]).sum(axis=1)
        return states

    def answers(self, states: np.ndarray, *, labelled: np.ndarray | None = None) -> Answers:
        """Of predicting each next state (those `labelled`) from the one before it."""
        before, after = states[:, :-1], states[:, 1:]
        kept = np.ones(after.shape, bool) if labelled is None else labelled
        frequent = np.bincount(after[kept]).max() / kept.sum()
        return Answers(float(frequent), float(self.next_KK.max(axis=1)[before[kept]].mean()))


def follower(random: np.random.Generator, states: int, sure: float) -> Chain:
    """Each state is followed by one other with the probability `sure`, else by any."""
    next_KK = np.full((states, states), (1 - sure) / states)
    next_KK[np.arange(states), np.roll(random.permutation(states), 1)] += sure
    return Chain(next_KK)


def next_items(*, integers: bool) -> Callable[[Path, np.random.Generator], Answers]:
    """Sessions over a hundred items. A third of the events tie in time, the rows are shuffled: `seq_no` orders them."""

    def write(directory: Path, random: np.random.Generator) -> Answers:
        chain = follower(random, 100, 0.8)
        ids = random.permutation(1_000_000)[:100]
        names = ids if integers else np.array([f"SKU-{number:06}" for number in ids])
        answers = Answers(0, 1)
        for part, walks in (("train", 2000), ("test", 400)):
            states = chain.walk(random, walks, 10)
            answers = chain.answers(states)
            ticks = np.cumsum(random.random(states.shape) < 2 / 3, axis=1)
            columns = {
                "session_id": np.repeat(np.arange(walks), 10),
                "ts": (1_700_000_000 + np.repeat(np.arange(walks) * 60, 10) + ticks.ravel()) * 1_000_000,
                "seq_no": np.tile(np.arange(10), walks),
                "item_id": names[states.ravel()],
            }
            order = random.permutation(walks * 10)
            table = pa.table({name: each[order] for name, each in columns.items()})
            table = table.set_column(1, "ts", table["ts"].cast(pa.timestamp("us")))
            pq.write_table(table, directory / f"{part}.parquet")
        return answers

    return write


def process_log(directory: Path, random: np.random.Generator) -> Answers:
    """Cases of an office: names of columns and activities hold colons, as XES writes them."""
    activities = ["register: request", "check: stock", "check: credit", "decide", "ship", "reject: notify", "archive"]
    chain = Chain(
        np.array(
            [
                [0.0, 0.9, 0.1, 0.0, 0.0, 0.0, 0.0],
                [0.0, 0.0, 0.8, 0.2, 0.0, 0.0, 0.0],
                [0.0, 0.1, 0.0, 0.9, 0.0, 0.0, 0.0],
                [0.0, 0.1, 0.0, 0.0, 0.7, 0.2, 0.0],
                [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
                [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
                [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
            ]
        )
    )
    answers = Answers(0, 1)
    for part, cases in (("train", 1500), ("test", 300)):
        states = chain.walk(random, cases, 12, start=0)
        there = np.cumsum(states == 6, axis=1) <= 1  # a case ends as it is archived
        answers = chain.answers(states, labelled=there[:, 1:])
        case, step = np.nonzero(there)
        table = pa.table(
            {
                "case:concept:name": [f"case {number}" for number in case],
                "concept:name": [activities[state] for state in states[there]],
                "time:timestamp": pa.array(1_700_000_000 + case * 977 + step * 3600, pa.timestamp("s")),
                "org:resource": random.choice(["ann", "bob", "cyd"], len(case)),
            }
        )
        pq.write_table(table, directory / f"{part}.parquet")
    return answers


LATE, DAYS = 5, 100  # the class that comes late, and what is split at days 70 and 85


def late_class(directory: Path, random: np.random.Generator) -> Answers:
    """A hundred days of pages; from day 72 on a twentieth of the events are of a kind that nobody had seen."""
    chain = follower(random, 5, 0.8)
    kinds = np.array(["home", "search", "item", "cart", "pay", "new:promo"])
    states = chain.walk(random, 400, DAYS)
    states[:, 72:][random.random((400, DAYS - 72)) < 0.05] = LATE
    users, days = np.divmod(np.arange(states.size), DAYS)
    pq.write_table(pa.table({"user": users, "day": days, "page": kinds[states.ravel()]}), directory / "train.parquet")
    before, after = states[:, 85:-1], states[:, 86:]
    sure = np.append(chain.next_KK.max(axis=1), 0.2) * 0.95  # what follows a promo is any page
    return Answers(float(np.bincount(after.ravel()).max() / after.size), float(sure[before].mean()))


def sessions(directory: Path, random: np.random.Generator) -> Answers:
    """Sessions of hits, each a struct: bought where the dearest hit was the last one, and seldom otherwise."""
    answers = Answers(0, 1)
    for part, rows in (("train", 1500), ("test", 400)):
        hits = [
            [{"page": str(page), "price": float(price)} for page, price in zip(*each, strict=True)]
            for each in (
                (random.choice(["list", "item", "cart"], length), random.gamma(2, 10, length))
                for length in random.integers(2, 9, rows)
            )
        ]
        likely = np.array([row[-1]["page"] == "cart" for row in hits])
        bought = np.where(likely, random.random(rows) < 0.9, random.random(rows) < 0.1)
        pq.write_table(pa.table({"hits": hits, "bought": bought.astype(np.int64)}), directory / f"{part}.parquet")
        share = float(bought.mean())
        answers = Answers(max(share, 1 - share), 0.9)
    return answers


# Lists of two levels ----------------------------------------------------------------------------------------------

# What a footer says of the list `x` beside a column `y`, in three levels and in two: the pages are the same.
LEVELS = (
    (b"\x19\x5c5", b"\x19\x4c5"),  # elements of the schema
    (b"5\x04\x18\x04list\x15\x02\x00\x15\x02%\x00\x18\x07element\x00", b"\x15\x02%\x04\x18\x05array\x00"),
    (b"\x198\x01x\x04list\x07element", b"\x19\x28\x01x\x05array"),  # the column's path
)


def two_level_lists(directory: Path, random: np.random.Generator) -> Answers:
    """`group x (LIST) { repeated int32 array }`, as Avro's and Hive's older writers leave lists: is their sum large?"""
    answers = Answers(0, 1)
    for part, rows in (("train", 1500), ("test", 400)):
        x = [random.integers(-9, 10, length).tolist() for length in random.integers(3, 12, rows)]
        y = np.array([sum(row) > 0 for row in x]) ^ (random.random(rows) < 0.05)
        kind = pa.list_(pa.field("element", pa.int32(), nullable=False))
        fields = pa.schema([pa.field("x", kind, nullable=False), pa.field("y", pa.int32())])
        path = directory / f"{part}.parquet"
        pq.write_table(
            pa.table([pa.array(x, kind), pa.array(y.astype(np.int32))], schema=fields),
            path,
            store_schema=False,
            compression="none",
            use_dictionary=False,
        )
        content = path.read_bytes()
        size = int.from_bytes(content[-8:-4], "little")
        pages, footer = content[: -8 - size], content[-8 - size : -8]
        for three, two in LEVELS:
            assert three in footer, "pyarrow writes footers in another way"
            footer = footer.replace(three, two)
        path.write_bytes(pages + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        assert "list {" not in str(pq.ParquetFile(path).schema)
        answers = Answers(float(max(y.mean(), 1 - y.mean())), 0.95)
    return answers


SESSIONS = {"key": "session_id", "time": "ts,seq_no", "columns": ("item_id",), "label": "item_id", "label_shift": 1}
CASES = {
    "next item, ids as strings": Case(next_items(integers=False), SESSIONS),
    "next item, ids as integers": Case(next_items(integers=True), SESSIONS),
    "sessions of structs": Case(sessions, None, label="bought"),
    "process log": Case(
        process_log,
        {"key": "case:concept:name", "time": "time:timestamp", "label": "concept:name", "label_shift": 1},
    ),
    "a class that comes late": Case(
        late_class,
        {"key": "user", "time": "day", "label": "page", "label_shift": 1, "split_by_time": ("70", "85")},
    ),
    "two-level lists": Case(two_level_lists, None, label="y"),
}


if __name__ == "__main__":
    main()
