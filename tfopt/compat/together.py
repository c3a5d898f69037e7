"""What `cluster_weights` does with the weights of a variable: where they begin, and how they go on in training."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.cluster.centroids import first_centroids, nearest


class Together:
    """A constraint that gives the weights of each cluster one value, which goes on learning.

    What the optimizer moves a weight it also moves in `free`, where each weight goes its own way; the value of a
    cluster moves by the mean of its weights' moves. Then each weight takes the value that is nearest to it in `free`.

    Args:
      members: of the variable's shape; 0: the weight stays zero; else 1 + the number of its cluster.
      free: of the variable's shape, what the weights would be, had they no clusters.
      centroids: the values of the clusters, shape (rows, clusters), rising in each row; a row for all weights, or for
        each slice of the variable along its last axis.
    """

    def __init__(self, members: keras.Variable, free: keras.Variable, centroids: keras.Variable) -> None:
        self.members, self.free, self.centroids = members, free, centroids
        self.rows, self.count = centroids.shape

    def __call__(self, value: Any) -> tf.Tensor:
        """The clustered value after a training step; called by the optimizer."""
        value, members = tf.convert_to_tensor(value), tf.convert_to_tensor(self.members)
        centroids, free = tf.convert_to_tensor(self.centroids), tf.convert_to_tensor(self.free)
        # In float32: the mean of many numbers of 16 bits is not one of them.
        moves = tf.where(members > 0, tf.cast(value, tf.float32) - self._shared(members, centroids), 0.0)
        free += moves
        means = tf.math.unsorted_segment_mean(
            tf.reshape(moves, (-1,)), tf.reshape(members, (-1,)), 1 + self.rows * self.count
        )
        centroids = tf.sort(centroids + tf.reshape(means[1:], centroids.shape), axis=1)
        members = tf.where(members > 0, 1 + self._nearest(free, centroids), 0)
        self.free.assign(free)
        self.centroids.assign(centroids)
        self.members.assign(members)
        return tf.cast(self._shared(members, centroids), value.dtype)

    def shared(self) -> tf.Tensor:
        """The clustered value, in float32."""
        return self._shared(tf.convert_to_tensor(self.members), tf.convert_to_tensor(self.centroids))

    def _shared(self, members: tf.Tensor, centroids: tf.Tensor) -> tf.Tensor:
        chosen = tf.gather(tf.reshape(centroids, (-1,)), tf.maximum(members - 1, 0))
        return tf.where(members > 0, chosen, 0.0)

    def _nearest(self, free: tf.Tensor, centroids: tf.Tensor) -> tf.Tensor:
        """The number of the nearest cluster among those of all rows, for each weight."""
        matrix = tf.reshape(free, (-1, self.rows))
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        chosen = tf.searchsorted(middles, tf.transpose(matrix)) + tf.range(self.rows)[:, None] * self.count
        return tf.reshape(tf.transpose(chosen), free.shape)


def cluster(
    values: np.ndarray, count: int, initialization: str, per_channel: bool, keep_zeros: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Where clusters begin, and the cluster of each weight.

    Args:
      values: weights.
      count: of clusters.
      initialization: of the centroids: as for `first_centroids`, or "random".
      per_channel: whether each slice along the last axis has clusters of its own.
      keep_zeros: whether weights that are zero stay zero; they are one of the clusters then.

    Returns:
      Centroids, float32, shape (rows, count), infinite where a row has fewer; and `members` as in `Together`.

    >>> centroids, members = cluster(np.array([0.0, 1.0, 1.2, 5.0]), 3, "linear", False, True)
    >>> centroids.tolist(), members.tolist()
    ([[1.0, 5.0, inf]], [0, 1, 1, 2])
    """
    rows = values.reshape(-1, values.shape[-1]).T if per_channel else values.reshape(1, -1)
    centroids, members = np.full((len(rows), count), np.inf, "float32"), np.zeros(rows.shape, "int32")
    for row, weights in enumerate(rows.astype("float64")):
        alive = (weights != 0) | (not keep_zeros)
        if not alive.any():
            continue
        found = _centroids(weights[alive], count - bool((~alive).any()), initialization)
        centroids[row, : len(found)] = found
        members[row, alive] = 1 + row * count + nearest(weights[alive], found)
    return centroids, (members.T if per_channel else members).reshape(values.shape)


def _centroids(weights: np.ndarray, count: int, initialization: Any) -> np.ndarray:
    if initialization != "random":
        return first_centroids(weights, count, initialization)
    drawn = np.random.default_rng(0).uniform(weights.min(), weights.max(), count)
    return np.sort(drawn).astype("float32")
