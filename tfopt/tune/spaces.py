"""What a search may choose from: `Range` of numbers and `Choice` of anything."""

import dataclasses
from typing import TYPE_CHECKING, Any

from tfopt.config import Config, require, source

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclasses.dataclass(frozen=True, repr=False)
class Range(Config):
    """Numbers from `low` to `high`, both included: whole ones where both ends are whole.

    Args:
      low: the least.
      high: the greatest, above `low`.
      step: distance of neighbours, from `low` on; None: 1 for whole numbers, any number else.
      log: as likely between 1 and 10 as between 10 and 100; needs `low` above 0 and no `step`.

    >>> Range(0.5, 0.9, step=0.1).count, Range(1, 8).count, Range(1e-4, 1e-2, log=True).count
    (5, 8, None)
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            require(number, f"{name} must be a number, received {value!r}; for other values write Choice(...)")
        require(self.low < self.high, f"low must be below high, received {self}")
        require(not self.log or self.low > 0, f"log=True needs low above 0, received {self}")
        require(not self.log or self.step is None, f"log and step exclude each other, received {self}")
        if self.step is not None:
            require(self.step > 0, f"step must be above 0, received {self}")
            require(
                not self.is_whole or isinstance(self.step, int),
                f"a range of whole numbers needs a whole step, received {self}; write {float(self.low)} for any number",
            )
            steps = (self.high - self.low) / self.step
            require(
                abs(steps - round(steps)) < 1e-6 and steps > 0.5,
                f"high must be low and a number of steps, received {self}; the nearest is "
                f"high={self.low + max(1, round(steps)) * self.step:g}",
            )

    @property
    def is_whole(self) -> bool:
        """Whether it has whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def count(self) -> int | None:
        """How many values there are; None: no end of them."""
        step = self.step or (1 if self.is_whole else None)
        return None if step is None else round((self.high - self.low) / step) + 1

    @property
    def first(self) -> float:
        """One of the values."""
        return self.low

    def distribution(self) -> "BaseDistribution":
        """The same in Optuna's words."""
        from optuna import distributions

        if self.is_whole:
            return distributions.IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return distributions.FloatDistribution(self.low, self.high, self.log, self.step)

    def value(self, drawn: Any) -> Any:
        """The value for what Optuna drew."""
        return drawn


@dataclasses.dataclass(frozen=True, repr=False, init=False)
class Choice(Config):
    """One of several values of any kind: names, stages, schedules, None.

    Args:
      values: at least two different ones, whose reprs tell them apart.

    >>> Choice("adam", "sgd")
    Choice('adam', 'sgd')
    """

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)
        names = self.names
        require(len(names) >= 2, f"a Choice needs at least two values, received {self}")
        require(len(set(names)) == len(names), f"the values of a Choice must differ, received {self}")

    @property
    def names(self) -> tuple[str, ...]:
        """What the journal calls the values."""
        return tuple(map(source, self.values))

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def first(self) -> Any:
        """One of the values."""
        return self.values[0]

    def distribution(self) -> "BaseDistribution":
        """The same in Optuna's words."""
        from optuna import distributions

        return distributions.CategoricalDistribution(self.names)

    def value(self, drawn: Any) -> Any:
        """The value for what Optuna drew."""
        return self.values[self.names.index(drawn)]

    def __repr__(self) -> str:
        return f"Choice({', '.join(self.names)})"


Space = Range | Choice
