"""What the preparations of columns share: the columns are the last axis, the rows all others together."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import require


def rows_of(name: str, inputs: tf.data.Dataset) -> Iterator[np.ndarray]:
    """The training inputs batch by batch.

    Args:
      name: of what asks, for errors.
      inputs: batches of shape (n, columns), or with more axes before the last.

    Yields:
      float64, shape (rows, columns).

    Raises:
      ValueError: inputs that are no single array of numbers with columns.
    """
    spec = inputs.element_spec
    require(
        isinstance(spec, tf.TensorSpec) and (spec.dtype.is_floating or spec.dtype.is_integer),
        f"{name} takes one array of numbers, received {spec}: turn categories into numbers first",
    )
    require(
        spec.shape.rank is not None and spec.shape.rank >= 2 and spec.shape[-1] is not None,
        f"{name} takes examples of shape (columns,) or (..., columns), received {tuple(spec.shape[1:])}",
    )
    for batch in inputs.as_numpy_iterator():
        yield batch.reshape(-1, batch.shape[-1]).astype("float64")


def whole(name: str, inputs: tf.data.Dataset) -> np.ndarray:
    """All rows at once, for what cannot be learned from batch to batch; else as `rows_of`."""
    return np.concatenate(list(rows_of(name, inputs)))


def require_finite(name: str, rows: np.ndarray) -> None:
    """Raises a ValueError that names the first column with NaN or infinity."""
    bad = ~np.isfinite(rows).all(axis=0)
    require(
        not bad.any(),
        f"{name}: column {int(bad.argmax())} of the training inputs has NaN or infinity: put Impute before it for "
        "NaN, Clip for infinity, or leave the column out",
    )


def as_columns(name: str, inputs: Any, columns: int) -> tf.Tensor:
    """A batch to change, as float32 or float64: what holds each of its numbers.

    Raises:
      ValueError: another number of columns than was learned; broadcasting would hide it.

    >>> as_columns("Scale", np.zeros((2, 3), "uint8"), 3).dtype
    tf.float32
    """
    x = tf.convert_to_tensor(inputs)
    require(
        x.shape.rank is not None and x.shape.rank >= 2 and x.shape[-1] == columns,
        f"{name} learned {columns} columns, received inputs of shape {x.shape}",
    )
    if x.dtype in (tf.float32, tf.float64):
        return x
    return tf.cast(x, tf.float32 if x.dtype.size <= 2 else tf.float64)
