"""Random numbers that depend on an example's own seed alone: the same in any batch, order, worker or thread."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_GOLDEN = 0x9E3779B97F4A7C15


def fold(seeds: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """Other seeds, one for each of the given ones and a number.

    Args:
      seeds: int64, any shape.
      number: of a step in a chain, a layer of a policy, an epoch.

    >>> bool(fold(tf.constant([1], tf.int64), 2) == fold(tf.constant([1], tf.int64), 3))
    False
    """
    return tf.bitcast(_mix(tf.bitcast(seeds, tf.uint64) + _golden_multiples(number)), tf.int64)


def uniform(seeds: tf.Tensor, stream: int, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()) -> tf.Tensor:
    """Random numbers in [low, high), independent from stream to stream.

    Args:
      seeds: int64, shape (examples,).
      stream: tells apart the numbers that one operation draws.
      low: the least.
      high: above the greatest.
      shape: of the numbers that each example gets.

    Returns:
      float32, shape (examples, *shape).

    Source: the finalizer of SplitMix64, Steele et al., 2014, doi:10.1145/2660193.2660195.

    >>> one, other = (uniform(tf.constant(each, tf.int64), 0).numpy() for each in ([7, 8], [8]))
    >>> bool(one[1] == other[0])
    True
    """
    # A shape may have sizes that are known in the graph alone.
    places = tf.range(math.prod(shape)) if shape else [0]
    bits = _mix(tf.bitcast(fold(seeds, stream), tf.uint64)[:, None] + _golden_multiples(places))
    return tf.reshape(low + (high - low) * _fractions(bits), [-1, *shape])


def uniforms(seeds: tf.Tensor, *ranges: tuple[float, float]) -> list[tf.Tensor]:
    """`uniform` of the streams 0, 1, …, each in its range, at once: small operations take longer to start than to run.

    >>> seeds = tf.constant([7, 8], tf.int64)
    >>> bool(tf.reduce_all(uniforms(seeds, (0, 1), (-3, 3))[1] == uniform(seeds, 1, -3, 3)))
    True
    """
    own = _mix(tf.bitcast(seeds, tf.uint64)[:, None] + _golden_multiples(range(len(ranges))))
    low, high = np.transpose(ranges)
    numbers = _fractions(_mix(own + _golden_multiples(0)))
    return tf.unstack(tf.constant(low, tf.float32) + tf.constant(high - low, tf.float32) * numbers, axis=1)


def integers(seeds: tf.Tensor, stream: int, bound: int | tf.Tensor) -> tf.Tensor:
    """Random integers in [0, bound), int32, shape (examples,)."""
    return below(uniform(seeds, stream), bound)


def below(numbers: tf.Tensor, bound: int | tf.Tensor) -> tf.Tensor:
    """Numbers in [0, 1) as integers in [0, bound), int32."""
    drawn = tf.cast(numbers * tf.cast(bound, tf.float32), tf.int32)
    # Of a large bound the product may be rounded up to it.
    return tf.minimum(drawn, tf.cast(bound, tf.int32) - 1)


def _golden_multiples(numbers: int | Sequence[int] | tf.Tensor) -> tf.Tensor:
    if tf.is_tensor(numbers):
        return tf.bitcast(tf.cast(numbers, tf.int64) + 1, tf.uint64) * tf.constant(_GOLDEN, tf.uint64)
    multiples = [_GOLDEN * (number + 1) % 2**64 for number in np.ravel(numbers).tolist()]
    # Through NumPy: in a graph TensorFlow takes a list of such large integers through floats.
    return tf.constant(np.array(multiples, np.uint64).reshape(np.shape(numbers)))


def _fractions(bits: tf.Tensor) -> tf.Tensor:
    # The upper 24 bits, which a float32 holds exactly.
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(40, tf.uint64)), tf.float32) * 2.0**-24


def _mix(bits: tf.Tensor) -> tf.Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(shift, tf.uint64)))
        bits *= tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(31, tf.uint64)))
