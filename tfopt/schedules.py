"""Sparsity schedules: the share of zeros as a function of the training step.

The names, arguments and formulas are those of tensorflow-model-optimization, whose own schedule objects can
be used in their place. One thing differs on purpose: `end_step` is always an update, even when `frequency`
does not divide the window, so the final sparsity is reached exactly.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from tfopt.config import Config, require, require_fraction


@dataclasses.dataclass(frozen=True, repr=False)
class PolynomialDecay(Config):
    """Sparsity that rises steeply at first and then ever more slowly.

    With p = (step - begin_step) / (end_step - begin_step), clipped to [0, 1], the sparsity is
    final + (initial - final) * (1 - p) ** power (Zhu and Gupta, 2017, arXiv:1710.01878, equation 1).

    Args:
      initial_sparsity: fraction of zeros at `begin_step`, in [0, 1).
      final_sparsity: fraction of zeros from `end_step` on, in [0, 1).
      begin_step: finished optimizer steps after which pruning starts, at least 0.
      end_step: finished optimizer steps after which the final sparsity holds, more than `begin_step`.
      power: exponent of the decay, above 0.
      frequency: steps between two updates of the masks, at least 1.

    Raises:
      ValueError: for a value outside these ranges.

    >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)
    >>> schedule(0), schedule(1000), schedule(1)
    ((True, 0.0), (True, 0.8), (False, 0.0023976...))
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        require_fraction("initial_sparsity", self.initial_sparsity)
        require_fraction("final_sparsity", self.final_sparsity)
        require(self.begin_step >= 0, f"begin_step must be at least 0, received {self.begin_step}")
        require(
            self.end_step > self.begin_step,
            f"end_step must be greater than begin_step, received begin_step={self.begin_step}, "
            f"end_step={self.end_step}",
        )
        require(self.power > 0, f"power must be above 0, received {self.power}")
        require(self.frequency >= 1, f"frequency must be at least 1, received {self.frequency}")

    def __call__(self, step: Any) -> tuple[Any, Any]:
        """(whether the masks are renewed at this step, the sparsity there); `step` an int or a tensor."""
        maths, step64 = _maths(step)
        p = (step64 - self.begin_step) / (self.end_step - self.begin_step)
        left = 1.0 - maths.clip(p, 0.0, 1.0)
        sparsity = self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * left**self.power
        return _plain(is_update(self, step)), _plain(sparsity)


@dataclasses.dataclass(frozen=True, repr=False)
class ConstantSparsity(Config):
    """The same sparsity from `begin_step` on; masks are renewed until `end_step`.

    Args:
      target_sparsity: fraction of zeros, in [0, 1).
      begin_step: finished optimizer steps after which pruning starts, at least 0.
      end_step: steps after which the masks stay as they are; -1: they are renewed for ever.
      frequency: steps between two updates of the masks, at least 1.

    Raises:
      ValueError: for a value outside these ranges.

    >>> ConstantSparsity(0.5, begin_step=10)(10)
    (True, 0.5)
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        require_fraction("target_sparsity", self.target_sparsity)
        require(self.begin_step >= 0, f"begin_step must be at least 0, received {self.begin_step}")
        require(
            self.end_step == -1 or self.end_step >= self.begin_step,
            f"end_step must be -1 (for ever) or at least begin_step, received "
            f"begin_step={self.begin_step}, end_step={self.end_step}",
        )
        require(self.frequency >= 1, f"frequency must be at least 1, received {self.frequency}")

    def __call__(self, step: Any) -> tuple[Any, Any]:
        """(whether the masks are renewed at this step, the sparsity there); `step` an int or a tensor."""
        _, step64 = _maths(step)
        return _plain(is_update(self, step)), _plain(self.target_sparsity + 0.0 * step64)


def is_update(schedule: Any, step: Any) -> Any:
    """Whether `schedule` renews its masks at `step`: every `frequency` steps, and always at `end_step`.

    Works on any object with TFMOT's attributes `begin_step`, `end_step` and `frequency`.
    """
    maths, _ = _maths(step)
    due = (step - schedule.begin_step) % schedule.frequency == 0
    if schedule.end_step != -1:
        due = maths.logical_and(maths.logical_or(due, step == schedule.end_step), step <= schedule.end_step)
    return maths.logical_and(step >= schedule.begin_step, due)


def last_update(schedule: Any) -> int | None:
    """The step from which the final sparsity holds; None for a schedule that does not tell.

    >>> last_update(PolynomialDecay(0.0, 0.8, 0, 1000)), last_update(ConstantSparsity(0.5, 10))
    (1000, 10)
    """
    begin, end = getattr(schedule, "begin_step", None), getattr(schedule, "end_step", None)
    if begin is None or end is None:
        return None
    # A constant sparsity is already the final one at its first update.
    return int(begin) if end == -1 or hasattr(schedule, "target_sparsity") else int(end)


def final_sparsity(schedule: Any) -> float | None:
    """The sparsity that a schedule ends at; None for one that does not tell its last step.

    >>> final_sparsity(PolynomialDecay(0.0, 0.8, 0, 1000))
    0.8
    """
    end = last_update(schedule)
    return None if end is None else float(schedule(end)[1])


def due_and_sparsity(schedule: Any, step: Any) -> tuple[Any, Any]:
    """(whether masks are renewed at the tensor `step`, as a bool tensor; the sparsity there).

    TFMOT's own schedules leave out an `end_step` that `frequency` does not hit; here it always counts.
    """
    due, sparsity = schedule(step)
    if all(hasattr(schedule, name) for name in ("begin_step", "end_step", "frequency")):
        due = is_update(schedule, step)
    return keras.ops.cast(due, "bool"), sparsity


def check_plan(schedule: Any, planned_steps: int) -> None:
    """Raises a ValueError where a schedule cannot reach its final sparsity within the planned steps.

    >>> check_plan(PolynomialDecay(0.0, 0.8, 0, 1000), planned_steps=900)
    Traceback (most recent call last):
    ValueError: the pruning schedule reaches its final sparsity at step 1000, but only 900 steps are planned; ...
    """
    end = last_update(schedule)
    require(
        end is None or end <= planned_steps,
        f"the pruning schedule reaches its final sparsity at step {end}, but only {planned_steps} steps are "
        f"planned; train longer, or set end_step to at most {planned_steps}",
    )


def _maths(step: Any) -> tuple[Any, Any]:
    """(NumPy or keras.ops, the step in float64: float32 would lose single weights of large tensors)."""
    if isinstance(step, int | np.integer):
        return np, np.float64(step)
    return keras.ops, keras.ops.cast(step, "float64")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
