"""How long a training still takes: its steps by a moving average, and the pauses in which it validates.

Knows no Ray, no clock: whoever asks says when.
"""

from __future__ import annotations

import math

LEAST_SECONDS = 10.0  # over which speed is averaged, and LAST_SHARE of the training so far once that is more:
LAST_SHARE = 1 / 3  # a start that was slow is forgotten, a window of long sequences does not count for all


class TimeLeft:
    """Takes how long steps and pauses took."""

    def __init__(self) -> None:
        self._steps = self._seconds = self._elapsed = 0.0
        self._pauses, self._paused = 0, 0.0

    def took(self, steps: int, seconds: float) -> None:
        """So many steps took so many seconds."""
        self._elapsed += seconds
        kept = math.exp(-seconds / max(LEAST_SECONDS, LAST_SHARE * self._elapsed))
        self._steps, self._seconds = kept * self._steps + steps, kept * self._seconds + seconds

    def paused(self, seconds: float) -> None:
        """A validation took so many seconds, with the checkpoint that it makes."""
        self._pauses, self._paused = self._pauses + 1, self._paused + seconds

    def seconds(self, steps: float, pauses: int, guess_steps: float = 0.0) -> float:
        """Seconds that so many steps and pauses take; NaN while none was made.

        A pause takes as long as those before it; as long as there was none, as `guess_steps` steps.
        """
        if not steps and not pauses:
            return 0.0
        if not self._steps:
            return math.nan
        each = self._seconds / self._steps
        pause = self._paused / self._pauses if self._pauses else guess_steps * each
        return steps * each + pauses * pause
