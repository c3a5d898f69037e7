"""Confidence intervals by the bootstrap: the same statistic of many random resamples of the examples."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tfopt.config import require
from tfopt.record import Record

# Numbers held at once, about 30 MB of counts.
_CELLS = 4_000_000

Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Interval(Record):
    """Where a value lies with a given confidence.

    Args:
      low: the lower end; None: there is no interval.
      high: the upper end; likewise.
      reason: why there is none, or what to know of it; empty: nothing.
    """

    low: float | None
    high: float | None
    reason: str = ""


def bootstrap(statistic: Statistic, examples: int, resamples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of a statistic over resamples of the examples, drawn with replacement.

    Args:
      statistic: from how often each example was drawn, float64 of shape (examples, some resamples), to the values by
        name, each of shape (some resamples,). Sums over examples are products of matrices with these counts, so that
        nothing is computed again on the examples themselves.
      examples: how many there are, at least 1; they are drawn whole, whatever number of labels each has.
      resamples: at least 1.
      seed: the same seed gives the same resamples.

    Returns:
      The values by name, each of shape (resamples,).

    Source: Efron, Bootstrap methods: another look at the jackknife, 1979.

    >>> values = np.array([1.0, 2.0, 3.0, 4.0])
    >>> found = bootstrap(lambda counts: {"mean": values @ counts / 4}, 4, resamples=5000)
    >>> found["mean"].shape, round(float(found["mean"].mean()), 1)
    ((5000,), 2.5)
    """
    require(examples >= 1, f"examples must be at least 1, received {examples!r}")
    require(resamples >= 1, f"resamples must be at least 1, received {resamples!r}")
    generator = np.random.default_rng(seed)
    size = max(1, min(resamples, _CELLS // examples))
    parts = []
    for start in range(0, resamples, size):
        columns = min(size, resamples - start)
        drawn = generator.integers(0, examples, (columns, examples))
        drawn = drawn * columns + np.arange(columns)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=examples * columns).reshape(examples, columns)
        parts.append(statistic(counts.astype(np.float64)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentile_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """The middle part of resampled values; resamples where the value is undefined (NaN) are left out, and said.

    Args:
      values: one for each resample.
      level: share of the values inside, in (0, 1).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    >>> percentile_interval(np.arange(101.0), 0.5)
    Interval(low=25.0, high=75.0, reason='')
    >>> percentile_interval(np.ones(10)).reason
    'all resamples give the same value: too few differ to tell how far it may be off'
    """
    require_level(level)
    defined = values[~np.isnan(values)]
    if not defined.size:
        return Interval(None, None, "undefined in every resample")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    reasons = []
    if defined.size < values.size:
        reasons.append(f"undefined in {values.size - defined.size:,} of {values.size:,} resamples, which are left out")
    if defined.min() == defined.max():
        reasons.append("all resamples give the same value: too few differ to tell how far it may be off")
    return Interval(float(low), float(high), "; ".join(reasons))


def require_level(level: float) -> None:
    """Raises a ValueError unless `level` is a fraction between 0 and 1."""
    number = isinstance(level, int | float) and not isinstance(level, bool)
    hint = f"; for {level:g} % write {level / 100:g}" if number and 1 < level < 100 else ""
    require(number and 0 < level < 1, f"level must be a fraction in (0, 1), received {level!r}{hint}")
