"""Columns of mean 0 and deviation 1."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.prepare import Preparation
from tfopt.tabular.columns import as_columns, require_finite, rows_of


def moments(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of columns that come in batches.

    Args:
      batches: float64, each of shape (rows, columns).

    Returns:
      Mean and deviation, float64, shape (columns,). The deviation of a column that never changes is 1.

    Source: Chan et al., 1983, doi:10.1080/00031305.1983.10483115, equation 2.1.

    >>> moments([np.array([[1.0, 7.0]]), np.array([[2.0, 7.0], [3.0, 7.0]])])[0]
    array([2., 7.])
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    low, high = np.array(np.inf), np.array(-np.inf)
    for rows in batches:
        own = rows.mean(axis=0)
        apart, total = own - mean, count + len(rows)
        squares = squares + ((rows - own) ** 2).sum(axis=0) + apart**2 * (count * len(rows) / total)
        mean, count = mean + apart * (len(rows) / total), total
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    deviation = np.sqrt(squares / count)
    # The mean of equal numbers may be rounded: their deviation would be noise, not 0.
    return np.where(low == high, low, mean), np.where((low == high) | (deviation == 0), 1.0, deviation)


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled:
    """What `Scale` learned.

    Args:
      mean: float64, shape (columns,).
      deviation: float64, shape (columns,); 1 where the column never changes.
    """

    mean: np.ndarray
    deviation: np.ndarray

    def __call__(self, inputs: Any) -> tf.Tensor:
        """Scales a batch, shape (n, columns) or (..., columns), to float32."""
        # In float64: a column such as a time since 1970 would lose its digits in the difference.
        x = tf.cast(as_columns("Scale", inputs, len(self.mean)), tf.float64)
        return tf.cast((x - self.mean) / self.deviation, tf.float32)


@dataclasses.dataclass(frozen=True, repr=False)
class Scale(Preparation):
    """Brings each column to mean 0 and standard deviation 1 over the training split.

    Columns are the last axis: the channels of signals and of images. One that never changes becomes 0.

    Raises:
      ValueError: in `adapt`, NaN or infinity, with the column.

    >>> rows = np.array([[1.0, 5.0], [3.0, 5.0]])
    >>> learned = Scale().adapt(tf.data.Dataset.from_tensor_slices(rows).batch(2))
    >>> learned(rows).numpy()
    array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    >>> learned.mean, learned.deviation
    (array([2., 5.]), array([1., 1.]))
    """

    def adapt(self, inputs: tf.data.Dataset) -> Scaled:
        """Learns mean and deviation."""

        def checked() -> Iterable[np.ndarray]:
            for rows in rows_of("Scale", inputs):
                require_finite("Scale", rows)
                yield rows

        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = moments(checked())
        require(
            bool(np.isfinite(deviation).all()),
            f"Scale: column {int((~np.isfinite(deviation)).argmax())} has values too large to be squared: put Clip "
            "before it",
        )
        return Scaled(mean, deviation)
