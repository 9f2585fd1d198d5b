"""What people see: lines, tables and progress; one way for a terminal, a quieter one for a pipe or a log file.

Knows no Ray and no torch; rich is imported when something is shown.

May import: pipelines.tracking.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipelines.tracking.follower import Progress

LOG_SECONDS = 5.0  # between lines of progress where there is no terminal


class Console:
    """Writes for people, to standard error what is progress and to standard output what is a result."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.interactive = sys.stderr.isatty() and not quiet
        self._last_line = 0.0

    def say(self, text: str = "") -> None:
        """A line of a result."""
        print(text, flush=True)

    def note(self, text: str) -> None:
        """A line about what is going on; dropped when quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def next(self, *words: str) -> None:
        """The command to type next; what people have to fill in stands in capitals. Dropped when quiet."""
        self.note(f"next: {shlex.join(['dynamic-rnn', *words])}")

    def table(self, title: str, rows: Mapping[str, Any]) -> None:
        """Names and values, aligned."""
        width = max((len(name) for name in rows), default=0)
        self.say(title)
        for name, value in rows.items():
            self.say(f"  {name:<{width}}  {format_value(value)}")

    @contextmanager
    def counting(self, what: str) -> Iterator[Any]:
        """Gives a callback (done, total) that shows a bar, or now and then a line."""
        if not self.interactive:
            yield lambda done, total: self._count_line(what, done, total)
            return
        from rich.progress import Progress

        with Progress(transient=True, console=_stderr()) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def _count_line(self, what: str, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._last_line >= LOG_SECONDS:
            self._last_line = time.monotonic()
            self.note(f"{what}: {done} of {total}")

    @contextmanager
    def training(self) -> Iterator[TrainingDisplay]:
        """A display of the training's progress and its validations."""
        display = TrainingDisplay(self)
        try:
            yield display
        finally:
            display.close()


class TrainingDisplay:
    """Shows `on_progress` as one live line (terminal) or a line every few seconds, `on_report` as lasting lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Any = None
        self._task: Any = None

    def on_scan(self, done: int, total: int) -> None:
        """Fragments of the data scanned."""
        self.console._count_line("scanning row groups", done, total)

    def on_progress(self, progress: Progress) -> None:
        """Where training stands."""
        if self.console.interactive:
            self._show(progress)
        elif progress.step == progress.total_steps or time.monotonic() - self.console._last_line >= LOG_SECONDS:
            self.console._last_line = time.monotonic()
            self.console.note(f"step {progress.step} of {progress.total_steps}: {line_of(progress)}")

    def on_report(self, metrics: Mapping[str, float]) -> None:
        """A validation."""
        names = ("train_loss", "validation_loss", "validation_accuracy", "validation_bits_per_step", "validation_rmse")
        told = ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
        self._print(f"step {metrics['step']:.0f}, epoch {metrics['epoch']:.2f}: {told}")

    def _show(self, progress: Progress) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None:
            columns = (
                TextColumn("{task.completed}/{task.total} steps"),
                BarColumn(20),
                TextColumn("{task.fields[told]}"),
            )
            self._bar = Progress(*columns, transient=True, console=_stderr())
            self._bar.start()
            self._task = self._bar.add_task("", total=progress.total_steps, told="")
        self._bar.update(self._task, completed=progress.step, told=line_of(progress))

    def _print(self, text: str) -> None:
        if self._bar is not None and not self.console.quiet:
            self._bar.console.print(text)
        else:
            self.console.note(text)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def line_of(progress: Progress) -> str:
    """Loss, rates, padding and time left, for one line."""
    return (
        f"loss {progress.loss:.4f}, {progress.steps_per_second:.1f} steps/s, "
        f"{progress.real_steps_per_second:,.0f} real steps/s, padding {progress.padding:.2f}, "
        f"{duration(progress.seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_value(value: Any) -> str:
    """A value for people: numbers rounded, everything else as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.6g}"
    return str(value)


def _stderr() -> Any:
    from rich.console import Console as RichConsole

    return RichConsole(stderr=True)
