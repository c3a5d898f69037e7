"""Small architectures for signals, each a function of the input's shape and the number of classes."""

import keras
from keras import layers

# Keras' 0.99 wants thousands of steps before inference sees the statistics that training does.
_MOMENTUM = 0.9


def conv1d_net(
    input_shape: tuple[int, ...],
    classes: int,
    filters: int = 32,
    blocks: int = 3,
    kernel: int = 5,
    dropout: float = 0.2,
) -> keras.Model:
    """Convolutions over time, each with stride 2, and their mean over time.

    Args:
      input_shape: (time, channels).
      classes: outputs, with softmax.
      filters: of the first convolution; the second has 1.5 times as many, the third twice as many, and so on.
      blocks: convolutions.
      kernel: steps that each of them sees.
      dropout: fraction of inputs dropped before the last layer in training, in [0, 1).

    >>> conv1d_net((100, 6), 7).count_params()
    25031
    """
    x = inputs = keras.Input(input_shape, name="signal")
    for index in range(blocks):
        name, width = f"block{index + 1}", filters * (2 + index) // 2
        x = layers.Conv1D(width, kernel, 2, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    x = layers.GlobalAveragePooling1D(name="average")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name="conv1d_net")
