"""Which weights to remove: pure maths on tensors."""

from typing import Any

import keras
from keras import ops

from tfopt.patterns import Pattern, pattern_mask


def magnitude_mask(weights: Any, sparsity: Any, mask: Any = None) -> Any:
    """Marks the weights to keep: all but the smallest by magnitude.

    Exactly round(sparsity * size) weights are removed, equal ones in their order in memory. With the mask so far,
    weights that it removed go first, whatever value a training step has just given them: a rising sparsity never
    brings a weight back.

    Args:
      weights: tensor of any shape, float.
      sparsity: fraction of weights to remove, in [0, 1); a float or a scalar tensor.
      mask: 0 or 1 for each weight, same shape; None: all ones.

    Returns:
      1 for the weights to keep and 0 for the others, same shape, float32.

    Source: Han et al., Learning both Weights and Connections, 2015, arXiv:1506.02626.

    >>> ops.convert_to_numpy(magnitude_mask([3.0, -1.0, 2.0, 0.5], 0.5)).tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    return pattern_mask(ops.abs(ops.convert_to_tensor(weights)), sparsity, Pattern(), mask)


def lamp_scores(weights: Any) -> Any:
    """Magnitudes that can be compared across layers: w² over the sum of the squares that are no smaller.

    The share of what its layer has left that goes with a weight, the smaller ones being gone. The largest weight of
    each layer has 1, so a layer keeps the more of its weights, the fewer it has and the less they differ.

    Args:
      weights: tensor of any shape, float.

    Returns:
      The scores, same shape, float32, in [0, 1]; in the order of the magnitudes.

    Source: Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, 2021, arXiv:2010.07611, equation 5.

    >>> [round(float(each), 4) for each in lamp_scores([2.0, -1.0, 0.0, 1.0])]
    [1.0, 0.1667, 0.0, 0.2]
    """
    tensor = ops.cast(ops.convert_to_tensor(weights), "float32")
    squares = ops.square(ops.reshape(tensor, (-1,)))
    # Stable: equal weights stay in their order in memory, as they do among magnitudes.
    order = ops.argsort(squares)
    rising = ops.take(squares, order)
    left = ops.flip(ops.cumsum(ops.flip(rising)))
    scores = ops.where(left > 0, rising / ops.where(left > 0, left, 1.0), 0.0)
    return ops.reshape(ops.scatter(ops.expand_dims(order, 1), scores, squares.shape), tensor.shape)


def measure_sparsity(weights: Any) -> float:
    """The fraction of weights that are exactly zero.

    >>> measure_sparsity([0.0, 1.0, 0.0, 2.0])
    0.5
    """
    values = keras.ops.convert_to_numpy(weights)
    return float((values == 0).mean())
