"""The user's mistakes on their way from a worker to the driver, and Ctrl-C on its way back."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray.train

from model.bundle.run_directory import ERROR
from model.errors import DynamicRnnError, from_plain, to_plain
from model.storage import exists, join, read_bytes, write_bytes
from pipelines.supervision.ray_trainer import BoundedTorchTrainer
from pipelines.supervision.watchdog import Watchdog


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C a KeyboardInterrupt again: Ray Train's own handler stops the workers, then ends with SystemExit(0).

    Puts our handler back, too: Ray Train and Ray Tune leave theirs installed, and a later Ctrl-C would do nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def record_error(directory: str, error: DynamicRnnError) -> None:
    """Keeps a mistake of the user's where the driver finds it."""
    write_bytes(join(directory, ERROR), json.dumps(to_plain(error)).encode())


def fit_or_raise(trainer: BoundedTorchTrainer, directory: str, watchdog: Watchdog) -> None:
    """Ray Train's workers until they have ended; raises what a worker has recorded, or what Ray Train has to say."""
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise_recorded(directory)
        watchdog.explain(error)
        raise
    raise_recorded(directory)


def raise_recorded(directory: str) -> None:
    """Raises the recorded mistake, if there is one."""
    if exists(join(directory, ERROR)):
        raise from_plain(json.loads(read_bytes(join(directory, ERROR))))
