"""Fewer columns, which hold most of what varies."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.prepare import Preparation
from tfopt.tabular.columns import as_columns, require_finite, whole


@dataclasses.dataclass(frozen=True, eq=False)
class Projected:
    """What `Pca` learned.

    Args:
      mean: float64, shape (columns,).
      components: float64, shape (components, columns): orthogonal directions of length 1, the widest first.
      explained: the share of the variance that each holds.
    """

    mean: np.ndarray
    components: np.ndarray
    explained: np.ndarray

    def __call__(self, inputs: Any) -> tf.Tensor:
        """Projects a batch of shape (n, columns) to (n, components), float32."""
        x = tf.cast(as_columns("Pca", inputs, len(self.mean)), tf.float64)
        return tf.cast((x - self.mean) @ self.components.T, tf.float32)


@dataclasses.dataclass(frozen=True, repr=False)
class Pca(Preparation):
    """Principal components of the training split; put `Scale` before it where columns have different units.

    Args:
      components: how many, at least 1; or the share of the variance that they must hold, in (0, 1).

    Raises:
      ValueError: in `adapt`, NaN or infinity, more components than rows or columns, or nothing that varies.

    Source: scikit-learn's `PCA`.

    >>> rows = np.outer(np.arange(4.0), [3.0, 4.0])
    >>> learned = Pca(1).adapt(tf.data.Dataset.from_tensor_slices(rows).batch(4))
    >>> learned.components.round(6), learned(rows).numpy().ravel()
    (array([[0.6, 0.8]]), array([-7.5, -2.5,  2.5,  7.5], dtype=float32))
    """

    components: int | float

    def __post_init__(self) -> None:
        whole_number = isinstance(self.components, int) and self.components >= 1
        require(
            whole_number or 0 < self.components < 1,
            f"components must be a whole number from 1, or a share of the variance in (0, 1), received "
            f"{self.components!r}",
        )

    def adapt(self, inputs: tf.data.Dataset) -> Projected:
        """Learns the components."""
        from sklearn.decomposition import PCA

        rows = whole("Pca", inputs)
        require(
            inputs.element_spec.shape.rank == 2,
            f"Pca takes examples of shape (columns,), received {tuple(inputs.element_spec.shape[1:])}",
        )
        require_finite("Pca", rows)
        require(
            self.components <= min(rows.shape),
            f"{self.components} components cannot be had of {rows.shape[0]} rows of {rows.shape[1]} columns",
        )
        require(bool((rows != rows[0]).any()), "Pca: nothing varies in the training split")
        # The randomized solver, which scikit-learn takes for large arrays, would not give the same twice.
        found = PCA(self.components, svd_solver="full").fit(rows)
        return Projected(found.mean_, found.components_, found.explained_variance_ratio_)
