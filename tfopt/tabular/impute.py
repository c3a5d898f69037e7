"""Missing values, filled in."""

import dataclasses
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.prepare import Preparation
from tfopt.tabular.columns import as_columns, whole

Strategy = Literal["median", "mean", "constant"]


@dataclasses.dataclass(frozen=True, eq=False)
class Imputed:
    """What `Impute` learned.

    Args:
      values: float64, shape (columns,): what stands in for NaN.
      indicated: the columns that get another one at the end, 1 where a value was missing and 0 elsewhere.
    """

    values: np.ndarray
    indicated: np.ndarray

    def __call__(self, inputs: Any) -> tf.Tensor:
        """Fills in a batch, shape (n, columns) or (..., columns)."""
        x = as_columns("Impute", inputs, len(self.values))
        missing = tf.math.is_nan(x)
        filled = tf.where(missing, tf.constant(self.values, x.dtype), x)
        if not len(self.indicated):
            return filled
        return tf.concat([filled, tf.cast(tf.gather(missing, self.indicated, axis=-1), x.dtype)], axis=-1)


@dataclasses.dataclass(frozen=True, repr=False)
class Impute(Preparation):
    """Fills in NaN, column by column.

    Args:
      strategy: "median" or "mean" of what the training split has in the column, or "constant".
      value: what "constant" fills in; finite.
      indicate: add a column of 0 and 1 for each one that has NaN in the training split.

    Raises:
      ValueError: in `adapt`, a column without a single value, of which there is no median or mean.

    >>> rows = np.array([[1.0, np.nan], [3.0, 5.0]])
    >>> learned = Impute(indicate=True).adapt(tf.data.Dataset.from_tensor_slices(rows).batch(2))
    >>> learned(rows).numpy()
    array([[1., 5., 1.],
           [3., 5., 0.]])
    """

    strategy: Strategy = "median"
    value: float = 0.0
    indicate: bool = False

    def __post_init__(self) -> None:
        require(
            self.strategy in ("median", "mean", "constant"),
            f"strategy must be one of median, mean, constant, received {self.strategy!r}",
        )
        require(bool(np.isfinite(self.value)), f"value must be finite, received {self.value!r}")

    def adapt(self, inputs: tf.data.Dataset) -> Imputed:
        """Learns what to fill in."""
        rows = whole("Impute", inputs)
        missing = np.isnan(rows)
        indicated = np.flatnonzero(missing.any(axis=0) & self.indicate)
        if self.strategy == "constant":
            return Imputed(np.full(rows.shape[1], float(self.value)), indicated)
        empty = missing.all(axis=0)
        require(
            not empty.any(),
            f"column {int(empty.argmax())} has no value in the training split: leave it out, or fill it in with "
            'Impute("constant")',
        )
        values = (np.nanmedian if self.strategy == "median" else np.nanmean)(rows, axis=0)
        require(
            bool(np.isfinite(values).all()),
            f"the {self.strategy} of column {int((~np.isfinite(values)).argmax())} is infinite in the training split: "
            "put Clip before Impute",
        )
        return Imputed(values, indicated)
