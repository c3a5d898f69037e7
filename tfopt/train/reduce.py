"""Sums over replicas, in as few messages as possible: between hosts each costs more than what it carries."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# Elements that travel together: 16 MB of float32. More would wait for each other without being faster.
_PACK = 4_000_000


def sum_over_replicas(tensors: Sequence[Any]) -> list[Any]:
    """The sum of each tensor over the replicas; of gradients, say. In a replica's context.

    Args:
      tensors: dense or sparse, of known shapes; None stays None.

    >>> [each.numpy().tolist() for each in sum_over_replicas([tf.constant([1.0, 2.0]), tf.constant(3.0)])]
    [[1.0, 2.0], 3.0]
    """
    replica = tf.distribute.get_replica_context()
    sums = list(tensors)
    alone = [place for place, each in enumerate(tensors) if isinstance(each, tf.IndexedSlices)]
    for place in alone:
        sums[place] = replica.all_reduce(tf.distribute.ReduceOp.SUM, tensors[place])
    dense = [place for place, each in enumerate(tensors) if each is not None and place not in alone]
    for places in _packs([tensors[place] for place in dense], dense):
        pack = tf.concat([tf.reshape(tensors[place], [-1]) for place in places], 0)
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, pack)
        parts = tf.split(total, [tensors[place].shape.num_elements() for place in places])
        for place, part in zip(places, parts, strict=True):
            sums[place] = tf.reshape(part, tensors[place].shape)
    return sums


def _packs(tensors: Sequence[tf.Tensor], places: Sequence[int]) -> list[list[int]]:
    """The places of tensors that travel together: of one type, and not too many elements."""
    packs: list[list[int]] = []
    kind, size = None, 0
    for place, each in zip(places, tensors, strict=True):
        count = each.shape.num_elements()
        if not packs or each.dtype != kind or size + count > _PACK:
            packs.append([])
            kind, size = each.dtype, 0
        packs[-1].append(place)
        size += count
    return packs


class SynchronizedStatistics(keras.layers.BatchNormalization):
    """A BatchNormalization whose statistics in training are those of the whole batch, over all replicas.

    Keras' own `synchronized=True` sends three messages where this sends one, forgets it where there is a mask, and
    loses digits where the mean is large beside the deviation.
    """

    def _moments(self, inputs: tf.Tensor, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
        axes, channels = self._reduction_axes, inputs.shape[self.axis]
        shape = [1] * len(inputs.shape)
        shape[self.axis] = channels
        # Near the mean, so that the squares stay small.
        shift = tf.stop_gradient(tf.cast(self.moving_mean, tf.float32))
        values = tf.cast(inputs, tf.float32) - tf.reshape(shift, shape)
        weights = tf.ones_like(values[..., :1] if self.axis in (-1, len(shape) - 1) else values)
        if mask is not None:
            weights = tf.broadcast_to(tf.cast(mask, tf.float32)[..., None], tf.shape(weights))
        weighted = values * weights
        count = tf.reduce_sum(weights) * (1.0 if weights.shape[self.axis] == 1 else 1.0 / channels)
        row = tf.concat([tf.reduce_sum(weighted, axes), tf.reduce_sum(weighted * values, axes), [count]], 0)
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, row)
        sums, squares, count = tf.split(total, [channels, channels, 1])
        mean = tf.math.divide_no_nan(sums, count)
        variance = tf.maximum(tf.math.divide_no_nan(squares, count) - tf.square(mean), 0.0)
        return tf.cast(mean + shift, inputs.dtype), tf.cast(variance, inputs.dtype)
