r"""The learning rate as a pure function of the step number, which is all that resuming needs.

factor
  1  |      ____________
     |     /            \__
     |    /                \____
floor|   /                      \__________
     +--|--------|------|---------|-----> step
      warmup      hold     decay
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, hold, and decay to a floor; `schedule(step)` is the factor of the learning rate.

    Args:
        warmup_steps: the factor rises from 1 / warmup_steps at step 0 to 1; 0 starts at 1.
        hold_steps: steps at 1 after the warm-up.
        decay_steps: steps from 1 down to `floor`, which then remains; 0 never decays.
        decay: "polynomial", `(1 - progress) ** power` above the floor, or "cosine".
        power: power of the polynomial; 1 is linear.
        floor: the last factor, in [0, 1].
        steps_before: steps of the schedule that were taken before step 0.

    Raises:
        ValueError: for a number out of range.
    """

    warmup_steps: int = 0
    hold_steps: int = 0
    decay_steps: int = 0
    decay: Literal["polynomial", "cosine"] = "polynomial"
    power: float = 2.0
    floor: float = 0.0
    steps_before: int = 0

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "hold_steps", "decay_steps", "steps_before"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value} must be an integer of at least 0")
        if self.decay not in ("polynomial", "cosine"):
            raise ValueError(f"decay={self.decay!r} must be 'polynomial' or 'cosine'")
        if not (math.isfinite(self.power) and self.power > 0):
            raise ValueError(f"power={self.power} must be above 0; 1 is linear")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor={self.floor} must lie in [0, 1]: it is a share of the learning rate")

    def __call__(self, step: int) -> float:
        """The factor at `step`, counted from 0.

        Raises:
            ValueError: if `step` is negative.
        """
        if step < 0:
            raise ValueError(f"{step=} must be at least 0")
        step += self.steps_before
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        decayed = step - self.warmup_steps - self.hold_steps
        if decayed <= 0 or self.decay_steps == 0:
            return 1.0
        progress = min(decayed / self.decay_steps, 1.0)
        cosine, polynomial = (1 + math.cos(math.pi * progress)) / 2, (1 - progress) ** self.power
        return self.floor + (1 - self.floor) * (cosine if self.decay == "cosine" else polynomial)
