"""Learning rates over a training: schedules whose shares become steps when the training's length is known.

Each is made of Keras' own schedules, which are computed within the compiled step. `Joined` puts them one after the
other.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeAlias

import keras
import numpy as np

from tfopt.config import Config, require, require_fraction

KerasSchedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("tfopt")
class Joined(KerasSchedule):
    """Schedules one after the other; each counts its steps from its own start.

    Args:
      schedules: Keras schedules, one or more.
      starts: the step at which each but the first begins, ascending.

    >>> line = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 1.0)
    >>> flat = keras.optimizers.schedules.PolynomialDecay(1.0, 1, 1.0)
    >>> [float(Joined([line, flat], [4])(step)) for step in (0, 2, 4, 9)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(self, schedules: Sequence[KerasSchedule], starts: Sequence[int]) -> None:
        require(
            len(starts) == len(schedules) - 1 and list(starts) == sorted(starts),
            f"{len(schedules)} schedules need {len(schedules) - 1} ascending starts, received {list(starts)}",
        )
        self.schedules, self.starts = list(schedules), [int(start) for start in starts]

    def __call__(self, step: Any) -> Any:
        """The rate at a step."""
        ops = keras.ops
        step = ops.cast(step, "int64")
        rate = self.schedules[0](step)
        for schedule, start in zip(self.schedules[1:], self.starts, strict=True):
            rate = ops.where(step >= start, schedule(ops.maximum(step - start, 0)), rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        serialize = keras.optimizers.schedules.serialize
        return {"schedules": [serialize(each) for each in self.schedules], "starts": self.starts}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Joined":
        """The reverse of `get_config`."""
        return cls([keras.optimizers.schedules.deserialize(each) for each in config["schedules"]], config["starts"])


@dataclasses.dataclass(frozen=True, repr=False)
class Schedule(Config):
    """Base of the schedules: a rise to the peak along a line, then what a subclass does.

    Args:
      peak: the highest learning rate, above 0.
      warmup: share of the steps spent rising from 0, in [0, 1).
    """

    peak: float = 1e-3
    warmup: float = 0.0

    def __post_init__(self) -> None:
        require(self.peak > 0, f"peak must be above 0, received {self.peak!r}")
        require_fraction("warmup", self.warmup)

    def scaled(self, batch_size: int, base: int = 256, warmup: float = 0.05) -> Self:
        """The schedule for another batch size, by the linear scaling rule: as many times the peak, after a warm-up.

        Args:
          batch_size: examples a step, of all replicas together.
          base: the batch size that `peak` was found for.
          warmup: the least share of the steps to rise in, where the peak becomes higher.

        Source: Goyal et al., 2017, arXiv:1706.02677, section 2.

        >>> Cosine(0.1).scaled(1024)
        Cosine(peak=0.4, warmup=0.05)
        """
        rising = max(self.warmup, warmup) if batch_size > base else self.warmup
        return dataclasses.replace(self, peak=self.peak * batch_size / base, warmup=rising)

    def over(self, steps: int) -> KerasSchedule:
        """The schedule for a training of so many optimizer steps."""
        rising = int(self.warmup * steps)
        after = self._after(rising, steps)
        return Joined([_line(0.0, self.peak, rising), after], [rising]) if rising else after

    def _after(self, rising: int, steps: int) -> KerasSchedule:
        """What comes after the warm-up, of all so many steps."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, repr=False)
class _Falling(Schedule):
    """Base of those that fall to a share of their peak."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction("final", self.final, one=True)


@dataclasses.dataclass(frozen=True, repr=False)
class Cosine(_Falling):
    """A learning rate that rises during a warm-up and then falls along half a cosine to the end of training.

    Args:
      peak: the highest learning rate, above 0.
      warmup: share of the steps spent rising from 0, in [0, 1).
      final: share of the peak that is left at the end, in [0, 1].

    Source: Loshchilov and Hutter, SGDR, 2017, arXiv:1608.03983, equation 5.

    >>> float(Cosine(peak=0.1).over(100)(100))
    0.0
    """

    def _after(self, rising: int, steps: int) -> KerasSchedule:
        return _cosine(self.peak, self.final, steps - rising)


@dataclasses.dataclass(frozen=True, repr=False)
class CosineRestarts(_Falling):
    """Cosines one after the other: each falls from its peak, and the next begins at once at its own.

    Args:
      peak: the highest learning rate, above 0.
      warmup: share of the steps spent rising from 0, in [0, 1).
      final: share of each cycle's peak that is left at its end, in [0, 1].
      cycles: how many fill the steps after the warm-up, at least 1.
      growth: how many times as long as the one before a cycle is, at least 1.
      decay: share of the peak before that a cycle's peak is, in (0, 1].

    Source: Loshchilov and Hutter, SGDR, 2017, arXiv:1608.03983, section 3.

    >>> schedule = CosineRestarts(peak=0.1, cycles=2, growth=1).over(20)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 15, 20)]
    [0.1, 0.05, 0.1, 0.05, 0.0]
    """

    cycles: int = 3
    growth: float = 2.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            isinstance(self.cycles, int) and self.cycles >= 1,
            f"cycles must be a whole number from 1, received {self.cycles!r}",
        )
        require(self.growth >= 1, f"growth must be at least 1, received {self.growth!r}")
        require(0 < self.decay <= 1, f"decay must be in (0, 1], received {self.decay!r}")

    def _after(self, rising: int, steps: int) -> KerasSchedule:
        # Keras' CosineDecayRestarts finds its cycle by a logarithm in float32, which can be off by one at a restart,
        # and begins a new cycle at the very end.
        lengths = self.growth ** np.arange(self.cycles)
        ends = [0, *np.rint((steps - rising) * np.cumsum(lengths) / lengths.sum()).astype(int).tolist()]
        require(
            ends[1] > 0,
            f"the first of {self.cycles} cycles with growth={self.growth} would have no step of {steps}: take fewer "
            "cycles, or train longer",
        )
        cycles = [
            _cosine(self.peak * self.decay**number, self.final, end - start)
            for number, (start, end) in enumerate(itertools.pairwise(ends))
        ]
        return Joined(cycles, ends[1:-1])


@dataclasses.dataclass(frozen=True, repr=False)
class Polynomial(_Falling):
    """A learning rate that falls from its peak as a power of the steps that are left; along a line by default.

    Args:
      peak: the highest learning rate, above 0.
      warmup: share of the steps spent rising from 0, in [0, 1).
      final: share of the peak that is left at the end, in [0, 1].
      power: of the share of steps that is left, above 0.

    >>> [float(Polynomial(peak=0.5, power=2.0).over(10)(step)) for step in (0, 5, 10)]
    [0.5, 0.125, 0.0]
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.power > 0, f"power must be above 0, received {self.power!r}")

    def _after(self, rising: int, steps: int) -> KerasSchedule:
        return _line(self.peak, self.final * self.peak, steps - rising, self.power)


@dataclasses.dataclass(frozen=True, repr=False)
class StepDecay(Schedule):
    """A learning rate that drops at some points of the training and stays between them.

    Args:
      peak: the highest learning rate, above 0.
      warmup: share of the steps spent rising from 0, in [0, 1).
      drops: shares of all steps at which it drops, ascending, between `warmup` and 1.
      factor: what a drop multiplies it by, in (0, 1).

    >>> [round(float(StepDecay(peak=0.1).over(100)(step)), 6) for step in (0, 49, 50, 75)]
    [0.1, 0.1, 0.01, 0.001]
    """

    drops: Sequence[float] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        between = [self.warmup, *self.drops, 1.0]
        require(
            bool(self.drops) and between == sorted(between) and self.drops[0] > 0 and self.drops[-1] < 1,
            f"drops must be ascending shares of the steps, above 0, from warmup={self.warmup} on and below 1, received "
            f"{self.drops!r}",
        )
        require(0 < self.factor < 1, f"factor must be in (0, 1), received {self.factor!r}")

    def _after(self, rising: int, steps: int) -> KerasSchedule:
        # Keras drops after the step that it is given, not at it.
        last = [int(share * steps) - rising - 1 for share in self.drops]
        values = [self.peak * self.factor**number for number in range(len(last) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(last, values)


@dataclasses.dataclass(frozen=True, repr=False)
class OneCycle(Schedule):
    """One rise and one fall as long, each along a line, then a last fall far below where it began.

    Smith moves the momentum the other way meanwhile; here it stays.

    Args:
      peak: the highest learning rate, above 0; see `find_learning_rate`.
      warmup: share of the steps spent rising, and again falling, in (0, 0.5).
      start: share of the peak to begin with, in [0, 1).
      final: share of the peak that is left at the end, in [0, 1], not above `start`.

    Source: Smith and Topin, Super-Convergence, 2018, arXiv:1708.07120, section 3.

    >>> schedule = OneCycle(peak=0.1, warmup=0.4, start=0.1, final=0.0).over(100)
    >>> [round(float(schedule(step)), 3) for step in (0, 40, 80, 90, 100)]
    [0.01, 0.1, 0.01, 0.005, 0.0]
    """

    warmup: float = 0.45
    start: float = 0.1
    final: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.warmup < 0.5,
            f"warmup must be in (0, 0.5), as falling takes as long and a last fall follows, received {self.warmup!r}",
        )
        require_fraction("start", self.start)
        require_fraction("final", self.final, one=True)
        require(self.final <= self.start, f"final must not be above start={self.start!r}, received {self.final!r}")

    def over(self, steps: int) -> KerasSchedule:
        """The schedule for a training of so many optimizer steps."""
        half, low = int(self.warmup * steps), self.start * self.peak
        require(half > 0, f"warmup={self.warmup} of {steps} steps is none: train longer, or make it larger")
        pieces = [
            _line(low, self.peak, half),
            _line(self.peak, low, half),
            _line(low, self.final * self.peak, steps - 2 * half),
        ]
        return Joined(pieces, [half, 2 * half])


@dataclasses.dataclass(frozen=True, repr=False)
class Plateau(Config):
    """A learning rate that is lowered when val_loss has stopped falling; without a warm-up.

    A training that was interrupted goes on with the rate and the patience that it had.

    Args:
      peak: the learning rate to begin with, above 0.
      factor: what it is multiplied by, in (0, 1).
      patience: epochs without a lower val_loss before that, at least 1.
      least: the lowest rate, at least 0 and below the peak.
      min_delta: by how much val_loss has to fall to count, at least 0.

    >>> Plateau(0.1, patience=2)
    Plateau(peak=0.1, patience=2)
    """

    peak: float = 1e-3
    factor: float = 0.1
    patience: int = 3
    least: float = 0.0
    min_delta: float = 1e-4

    def __post_init__(self) -> None:
        require(self.peak > 0, f"peak must be above 0, received {self.peak!r}")
        require(0 < self.factor < 1, f"factor must be in (0, 1), received {self.factor!r}")
        require(
            isinstance(self.patience, int) and self.patience >= 1,
            f"patience must be a number of epochs from 1, received {self.patience!r}",
        )
        require(0 <= self.least < self.peak, f"least must be at least 0 and below the peak, received {self.least!r}")
        require(self.min_delta >= 0, f"min_delta must be at least 0, received {self.min_delta!r}")

    def over(self, steps: int) -> float:
        """The rate to begin with: `LowerOnPlateau` changes it after an epoch."""
        return self.peak


class LowerOnPlateau(keras.callbacks.ReduceLROnPlateau):
    """Keras' ReduceLROnPlateau that can resume; the rate itself is a variable of the optimizer."""

    def __init__(self, plateau: Plateau) -> None:
        super().__init__(
            "val_loss", plateau.factor, plateau.patience, 0, "min", plateau.min_delta, min_lr=plateau.least
        )

    def on_train_begin(self, logs: Any = None) -> None:
        """Keeps what was restored, where Keras would begin anew."""

    def state(self) -> dict[str, np.ndarray]:
        """The best loss and the epochs since then."""
        best = np.inf if self.best is None else self.best
        return {"summary": np.array([best, self.wait], "float64")}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The reverse of `state`."""
        self.best, wait = state["summary"].tolist()
        self.wait = int(wait)


def _line(start: float, end: float, steps: int, power: float = 1.0) -> KerasSchedule:
    return keras.optimizers.schedules.PolynomialDecay(start, max(1, steps), end, power)


def _cosine(peak: float, final: float, steps: int) -> KerasSchedule:
    return keras.optimizers.schedules.CosineDecay(peak, max(1, steps), final)
