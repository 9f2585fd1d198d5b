"""Learning-rate schedules as declared settings: a factor on the learning rate, a pure function of the optimizer step.

    schedule: {type: cosine, warmup_steps: 100, decay_steps: 5000}

Nothing is counted or stored here, so a resumed training goes on with the very same rates. Read without torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from model.settings import Settings


class _Schedule(Settings):
    """What all schedules share: a linear warm-up, after which their own steps count from 0."""

    warmup_steps: int = Field(0, ge=0, description="first steps, in which the rate rises linearly to learning_rate")

    def factor(self, steps_made: int) -> float:
        """The factor of the step that follows `steps_made` optimizer steps."""
        if steps_made < self.warmup_steps:
            return (steps_made + 1) / self.warmup_steps
        return self._after_warmup(steps_made - self.warmup_steps)

    def _after_warmup(self, steps_made: int) -> float:
        raise NotImplementedError


class _Decay(_Schedule):
    """From 1 to `final_factor`, which then stays."""

    decay_steps: int = Field(ge=1, description="steps from the end of the warm-up to final_factor")
    final_factor: float = Field(0.0, ge=0, le=1, description="share of learning_rate that is left in the end")

    def _after_warmup(self, steps_made: int) -> float:
        progress = min(steps_made / self.decay_steps, 1.0)
        return self.final_factor + (1 - self.final_factor) * self._left(progress)

    @staticmethod
    def _left(progress: float) -> float:
        """What is left of the decay, from 1 at progress 0 to 0 at progress 1."""
        raise NotImplementedError


class ConstantSchedule(_Schedule):
    """learning_rate throughout, after the warm-up."""

    type: Literal["constant"] = "constant"

    def _after_warmup(self, steps_made: int) -> float:
        return 1.0


class StepSchedule(_Schedule):
    """learning_rate · multiplier^⌊steps / every_steps⌋: a staircase."""

    type: Literal["step"] = "step"
    every_steps: int = Field(ge=1, description="steps between two changes")
    multiplier: float = Field(0.1, gt=0, le=1, description="what the rate is multiplied with at each change")

    def _after_warmup(self, steps_made: int) -> float:
        return float(self.multiplier ** (steps_made // self.every_steps))


class CosineSchedule(_Decay):
    """Half a cosine wave from learning_rate down to its final share."""

    type: Literal["cosine"] = "cosine"

    @staticmethod
    def _left(progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


class LinearSchedule(_Decay):
    """A straight line from learning_rate down to its final share."""

    type: Literal["linear"] = "linear"

    @staticmethod
    def _left(progress: float) -> float:
        return 1 - progress


Schedule = Annotated[
    ConstantSchedule | StepSchedule | CosineSchedule | LinearSchedule,
    Field(discriminator="type"),
]
