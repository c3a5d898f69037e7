"""Outliers, brought back to the range that most of the training split keeps."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import require, require_fraction
from tfopt.data.prepare import Preparation
from tfopt.tabular.columns import as_columns, whole


@dataclasses.dataclass(frozen=True, eq=False)
class Clipped:
    """What `Clip` learned.

    Args:
      low: float64, shape (columns,): the least value of each column; minus infinity where it is left alone.
      high: the same, the greatest.
    """

    low: np.ndarray
    high: np.ndarray

    def __call__(self, inputs: Any) -> tf.Tensor:
        """Clips a batch, shape (n, columns) or (..., columns); NaN stays NaN."""
        x = as_columns("Clip", inputs, len(self.low))
        low, high = tf.constant(self.low, x.dtype), tf.constant(self.high, x.dtype)
        return tf.where(x < low, low, tf.where(x > high, high, x))


@dataclasses.dataclass(frozen=True, repr=False)
class Clip(Preparation):
    """Clips each column to quantiles of the training split, or to its quartiles and a margin.

    A column whose bounds fall together, such as a flag that is seldom 1, is left alone: it would become constant.

    Args:
      low: quantile that becomes the least value, in [0, 1].
      high: quantile that becomes the greatest, in [low, 1].
      iqr: in place of both: so many times the distance between the quartiles is left on either side of them, at
        least 0; 1.5 is what box plots draw.

    Raises:
      ValueError: in `adapt`, a column without a single value, or with an infinite bound.

    Source: Tukey, Exploratory Data Analysis, 1977, section 2, for `iqr`.

    >>> rows = np.arange(101.0)[:, None]
    >>> learned = Clip(0.1, 0.9).adapt(tf.data.Dataset.from_tensor_slices(rows).batch(50))
    >>> learned(np.array([[-5.0], [50.0], [1000.0]])).numpy().ravel()
    array([10., 50., 90.])
    """

    low: float = 0.01
    high: float = 0.99
    iqr: float | None = None

    def __post_init__(self) -> None:
        require_fraction("low", self.low, one=True)
        require_fraction("high", self.high, one=True)
        require(self.low < self.high, f"low must be below high, received {self.low} and {self.high}")
        require(self.iqr is None or self.iqr >= 0, f"iqr must be at least 0, received {self.iqr}")

    def adapt(self, inputs: tf.data.Dataset) -> Clipped:
        """Learns the bounds."""
        rows = whole("Clip", inputs)
        empty = np.isnan(rows).all(axis=0)
        require(not empty.any(), f"column {int(empty.argmax())} has no value in the training split: leave it out")
        quantiles = (self.low, self.high) if self.iqr is None else (0.25, 0.75)
        # What comes of infinities is refused below.
        with np.errstate(invalid="ignore"):
            low, high = np.nanquantile(rows, quantiles, axis=0)
            if self.iqr is not None:
                low, high = low - self.iqr * (high - low), high + self.iqr * (high - low)
        known = np.isfinite(low) & np.isfinite(high)
        require(
            bool(known.all()),
            f"column {int((~known).argmax())} is infinite so often in the training split that its bounds are: choose "
            "quantiles farther inside, or repair it",
        )
        together = low == high
        return Clipped(np.where(together, -np.inf, low), np.where(together, np.inf, high))
