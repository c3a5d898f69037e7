"""Micro-batches: a batch cut into parts, whose weighted results are those of the whole batch.

Used for gradient accumulation and pipeline parallelism. All of it works on NumPy arrays, eagerly, and in a graph whose
batch size is not known yet.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import require


def bounds(size: Any, parts: int, index: Any) -> tuple[Any, Any]:
    """Where part `index` of a batch begins and ends; parts differ by one example at most, the larger ones first.

    So the first min(size, parts) parts are never empty, and all others are.

    Args:
      size: examples in the batch, at least 0: a number or an integer tensor.
      parts: how many there are, at least 1.
      index: which one, in [0, parts): a number or an integer tensor.

    >>> [bounds(10, 4, index) for index in range(4)]
    [(0, 3), (3, 6), (6, 8), (8, 10)]
    """
    small, larger = size // parts, size % parts
    least = tf.minimum if tf.is_tensor(size) or tf.is_tensor(index) else min
    return index * small + least(index, larger), (index + 1) * small + least(index + 1, larger)


def batch_size(data: Any) -> Any:
    """The number of examples in a nested batch: a number where it is known, else a scalar int32 tensor.

    Raises:
      ValueError: there is no tensor, or one without a batch dimension.

    >>> batch_size(({"image": tf.zeros([6, 2])}, tf.zeros([6]), None))
    6
    """
    leaves = [each for each in keras.tree.flatten(data) if each is not None]
    require(bool(leaves), f"a batch must have at least one tensor, received {data!r}")
    for each in leaves:
        require(len(each.shape) > 0, f"each tensor of a batch must have a batch dimension first, received {each!r}")
    first = leaves[0]
    if first.shape[0] is not None:
        return first.shape[0]
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32)
    if isinstance(first, tf.SparseTensor):
        return tf.cast(first.dense_shape[0], tf.int32)
    return tf.shape(first)[0]


def slice_batch(data: Any, start: Any, stop: Any) -> Any:
    """The examples from `start` to before `stop` of a nested batch; None stays None."""

    def cut(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, tf.SparseTensor):
            shape = tf.shape(value, out_type=tf.int64)
            first, last = tf.cast(start, tf.int64), tf.cast(stop, tf.int64)
            rest = tf.zeros_like(shape[1:])
            return tf.sparse.slice(value, tf.concat([[first], rest], 0), tf.concat([[last - first], shape[1:]], 0))
        return value[start:stop]

    return keras.tree.map_structure(cut, data)


def part_or_one(data: Any, size: Any, parts: int, index: int) -> Any:
    """Part `index` of a nested batch; one example again where it would be empty, as not all operations work on none.

    Args:
      data: nested tuples, lists and dicts of arrays or tensors (dense, ragged, sparse), examples along the first axis,
        all of one size; None stays None.
      size: examples in it, at least 1; see `batch_size`.
      parts: at least 1.
      index: in [0, parts).

    >>> [part_or_one(tf.constant([7, 8]), 2, 3, index).numpy().tolist() for index in range(3)]
    [[7], [8], [8]]
    """
    least, most = (tf.minimum, tf.maximum) if tf.is_tensor(size) else (min, max)
    start, stop = bounds(size, parts, index)
    start = least(start, size - 1)
    return slice_batch(data, start, most(stop, start + 1))


def join_parts(outputs: Sequence[Any], size: Any) -> Any:
    """What was made of the parts of a batch, together, with its masks and without examples that were taken again.

    Args:
      outputs: of each part, of one nested structure.
      size: examples in the batch.

    >>> join_parts([tf.constant([7]), tf.constant([8]), tf.constant([8])], 2).numpy().tolist()
    [7, 8]
    """
    if len(outputs) == 1:
        return outputs[0]
    cuts = [bounds(size, len(outputs), index) for index in range(len(outputs))]

    def concat(parts: Sequence[Any]) -> Any:
        return tf.concat([part[: stop - start] for part, (start, stop) in zip(parts, cuts, strict=True)], 0)

    def join(*parts: Any) -> Any:
        masks = [mask_of(part) for part in parts]
        return with_mask(concat(parts), None if masks[0] is None else concat(masks))

    return keras.tree.map_structure(join, *outputs)


def sum_gradients(gradients: Sequence[Any]) -> Any:
    """The sum of a variable's gradients, dense or of some rows; None where there are none."""
    there = [each for each in gradients if each is not None]
    if len(there) < 2:
        return there[0] if there else None
    if all(isinstance(each, tf.IndexedSlices) for each in there):
        return tf.IndexedSlices(
            tf.concat([each.values for each in there], 0),
            tf.concat([each.indices for each in there], 0),
            there[0].dense_shape,
        )
    return tf.add_n([tf.convert_to_tensor(each) for each in there])


def with_mask(value: Any, mask: Any) -> Any:
    """`value`, with a mask where Keras keeps it, for layers, losses and metrics alike."""
    if mask is not None:
        value._keras_mask = mask
    return value


def mask_of(value: Any) -> Any:
    """The mask that Keras keeps with a tensor, or None."""
    return getattr(value, "_keras_mask", None)


def part_weights(size: Any, parts: int) -> tf.Tensor:
    """The share of the batch's examples in each part, [parts] float32; their sum is 1, or 0 for an empty batch.

    The mean over a batch is the sum of the means over its parts times these, which so holds for the gradients of a loss
    that Keras reduces by "sum_over_batch_size", with sample weights or without. The mean over an empty part is not
    defined, and its weight 0 does not mend that: loop over the first min(size, parts) of them.

    Args:
      size: examples in the batch: a number or an integer tensor; see `batch_size`.
      parts: at least 1.

    >>> part_weights(10, 4).numpy().tolist()
    [0.30000001192092896, 0.30000001192092896, 0.20000000298023224, 0.20000000298023224]
    """
    size = tf.convert_to_tensor(size)
    starts, stops = bounds(size, parts, tf.range(parts, dtype=size.dtype))
    return tf.math.divide_no_nan(tf.cast(stops - starts, tf.float32), tf.cast(size, tf.float32))
