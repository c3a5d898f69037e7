"""`SharedValues`: a constraint under which a kernel has few different values, which go on learning."""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfopt.cluster.centroids import Initialization, first_centroids, nearest
from tfopt.invariants import replica_variable


class SharedValues:
    """Gives the weights of each cluster one value, which moves by the mean of what a step moves them.

    The weights that are zero at the start, as after pruning, stay zero: they are one of the clusters.

    Args:
      variable: the kernel; it is clustered at once.
      count: of different values, at least 2; for each output channel where `per_channel`.
      initialization: of the centroids.
      per_channel: whether each slice along the last axis has clusters of its own.
      refresh: steps after which each weight may change to the cluster that it has come nearest to; 0: never.
      iterations: the optimizer's own count of steps.
      last: the step after which no weight changes its cluster; None: they go on.

    Source: Han et al., Deep Compression, 2016, arXiv:1510.00149, section 3.3.
    """

    def __init__(
        self,
        variable: keras.Variable,
        count: int,
        initialization: Initialization,
        per_channel: bool,
        refresh: int,
        iterations: keras.Variable,
        last: int | None = None,
    ) -> None:
        self.variable, self.refresh, self.iterations, self.last = variable, refresh, iterations, last
        values = keras.ops.convert_to_numpy(variable).astype("float32")
        self.count = count - bool((values == 0).any())
        self.rows = values.shape[-1] if per_channel else 1
        # One row for each set of clusters.
        matrix = values.reshape(-1, values.shape[-1]).T if per_channel else values.reshape(1, -1)
        self.matrix_shape = matrix.shape
        self.alive = replica_variable(matrix != 0, variable)
        centroids, members = np.zeros((self.rows, self.count), "float32"), np.zeros(matrix.shape, "float32")
        for row, weights in enumerate(matrix):
            kept = weights[weights != 0]
            if kept.size:
                centroids[row] = first_centroids(kept, self.count, initialization)
                members[row] = nearest(weights, centroids[row])
        self.centroids = replica_variable(centroids, variable)
        self.members = replica_variable(members, variable)
        # What the weights would be, had each gone its own way.
        self.free = replica_variable(matrix, variable) if refresh else None
        self.apply()

    def __call__(self, value: tf.Tensor) -> tf.Tensor:
        """The clustered value after a training step; called by the optimizer."""
        value = tf.convert_to_tensor(value)
        matrix = self._to_matrix(tf.cast(value, tf.float32))
        if self.free is not None:
            self.free.assign_add((matrix - self._shared(tf.convert_to_tensor(self.centroids))) * self.alive)
            # Constraints run before the optimizer counts the step they belong to.
            step = tf.cast(self.iterations, tf.int64) + 1
            is_due = step % self.refresh == 0
            if self.last is not None:
                is_due &= step <= self.last
            tf.cond(is_due, self._reassign, lambda: None)
            matrix = tf.where(is_due, tf.convert_to_tensor(self.free), matrix)
        centroids = self._means(matrix, tf.convert_to_tensor(self.centroids))
        self.centroids.assign(centroids)
        return tf.cast(self._to_kernel(self._shared(centroids)), value.dtype)

    def apply(self) -> None:
        """Clusters the variable now, outside of a training step."""
        self.variable.assign(self._to_kernel(self._shared(tf.convert_to_tensor(self.centroids))))

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs."""
        kept = {"centroids": self.centroids, "members": self.members, "alive": self.alive}
        if self.free is not None:
            kept["free"] = self.free
        return {key: each.numpy() for key, each in kept.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave."""
        for key, value in state.items():
            getattr(self, key).assign(value)

    def _index(self) -> tf.Tensor:
        """The number of each weight's cluster among those of all rows."""
        return tf.cast(self.members, tf.int32) + tf.range(self.rows)[:, None] * self.count

    def _shared(self, centroids: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.reshape(centroids, (-1,)), self._index()) * self.alive

    def _means(self, matrix: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        """The mean of each cluster's weights; a cluster without any stays where it was."""
        clusters, index = self.rows * self.count, tf.reshape(self._index(), (-1,))
        alive = tf.reshape(tf.convert_to_tensor(self.alive), (-1,))
        sums = tf.math.unsorted_segment_sum(tf.reshape(matrix, (-1,)) * alive, index, clusters)
        sizes = tf.math.unsorted_segment_sum(alive, index, clusters)
        old = tf.reshape(before, (-1,))
        return tf.reshape(tf.where(sizes > 0, sums / tf.maximum(sizes, 1.0), old), before.shape)

    def _reassign(self) -> None:
        free = tf.convert_to_tensor(self.free)
        centroids = tf.sort(self._means(free, tf.convert_to_tensor(self.centroids)), axis=1)
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        self.centroids.assign(centroids)
        self.members.assign(tf.cast(tf.searchsorted(middles, free), tf.float32))

    def _to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        if self.rows == 1:
            return tf.reshape(kernel, self.matrix_shape)
        return tf.transpose(tf.reshape(kernel, self.matrix_shape[::-1]))

    def _to_kernel(self, matrix: tf.Tensor) -> tf.Tensor:
        return tf.reshape(matrix if self.rows == 1 else tf.transpose(matrix), self.variable.shape)
