"""`Goal`: what a file must keep to."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfopt.config import Config, require, require_fraction

# What a file costs, by the limit on it.
COSTS = {"max_bytes": "bytes", "max_gzip_bytes": "gzip_bytes", "max_latency_ms": "median_ms"}
# A point of accuracy counts as ten percent of a size or of a latency where files that miss a goal are compared.
_POINTS = 10.0


@dataclasses.dataclass(frozen=True, repr=False)
class Goal(Config):
    """Limits for a file; at least one.

    Args:
      max_drop: how much worse than the float model the file may be: of accuracy as a fraction, 0.01 is a point; of a
        regression the share by which the mean absolute error may grow. In [0, 1).
      max_bytes: of the file as it is.
      max_gzip_bytes: of the file after gzip at level 9.
      max_latency_ms: median time of one invocation on this machine, one thread.

    Raises:
      ValueError: no limit, or one out of range.

    >>> Goal(max_drop=0.01, max_bytes=20_000)
    Goal(max_drop=0.01, max_bytes=20000)
    """

    max_drop: float | None = None
    max_bytes: int | None = None
    max_gzip_bytes: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        limits = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        require(
            any(each is not None for each in limits.values()),
            f"the target is empty: give at least one of {', '.join(limits)}",
        )
        if self.max_drop is not None:
            require_fraction("max_drop", self.max_drop)
        for name in COSTS:
            value = limits[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            require(
                value is None or (is_number and value > 0),
                f"{name} must be above 0, received {value!r}: no file costs nothing",
            )

    @property
    def costs(self) -> dict[str, float]:
        """The limits on what a file costs, by "bytes", "gzip_bytes" and "median_ms"."""
        limits = {cost: getattr(self, name) for name, cost in COSTS.items()}
        return {cost: float(limit) for cost, limit in limits.items() if limit is not None}

    def excess(self, values: Mapping[str, Any]) -> dict[str, float]:
        """By how much a file is beyond each limit that it breaks: costs as a share of the limit, "drop" as it is.

        >>> Goal(max_drop=0.01, max_bytes=100).excess({"drop": 0.03, "bytes": 150})
        {'drop': 0.02, 'bytes': 0.5}
        """
        beyond = {cost: values[cost] / limit - 1.0 for cost, limit in self.costs.items()}
        if self.max_drop is not None:
            # Differences of fractions of a few hundred examples are not exact.
            beyond = {"drop": round(values["drop"] - self.max_drop, 9), **beyond}
        return {name: each for name, each in beyond.items() if each > 0}

    def distance(self, values: Mapping[str, Any]) -> float:
        """How far a file is from the goal, 0 where it is reached: the worst excess, a point counting as ten percent."""
        beyond = self.excess(values)
        return max((each * _POINTS if name == "drop" else each for name, each in beyond.items()), default=0.0)
