"""Small architectures for columns of numbers, each a function of the input's shape and the number of classes."""

from collections.abc import Sequence

import keras
from keras import layers

from tfopt.config import require


def mlp(
    input_shape: tuple[int, ...], classes: int, units: Sequence[int] = (64, 32), dropout: float = 0.1
) -> keras.Model:
    """Dense layers, one after the other.

    Args:
      input_shape: (columns,).
      classes: outputs, with softmax.
      units: of each hidden layer.
      dropout: fraction of its inputs dropped before each layer but the first in training, in [0, 1).

    Raises:
      ValueError: inputs of more than one axis.

    >>> mlp((30,), 2).count_params()
    4130
    """
    require(len(input_shape) == 1, f"mlp takes examples of shape (columns,), received {input_shape}")
    x = inputs = keras.Input(input_shape, name="columns")
    for number, size in enumerate(units, 1):
        x = layers.Dense(size, activation="relu", name=f"hidden{number}")(x)
        x = layers.Dropout(dropout, name=f"dropout{number}")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name="mlp")
