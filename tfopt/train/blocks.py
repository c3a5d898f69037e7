"""What the architectures for images are made of."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfopt.config import require

# Keras' 0.99 wants thousands of steps before inference sees the statistics that training does.
MOMENTUM = 0.9


def scaled(filters: float, width: float) -> int:
    """Filters times a width multiplier, to the nearest multiple of 8, but never more than a tenth below.

    With `width` 1 whole numbers stay as they are.

    Raises:
      ValueError: `width` is not above 0.

    Source: Sandler et al., MobileNetV2, 2018, arXiv:1801.04381, as in its reference implementation.

    >>> [scaled(32, width) for width in (0.1, 0.35, 0.5, 1.0, 1.4)]
    [8, 16, 16, 32, 48]
    """
    require(width > 0, f"width must be above 0, received {width!r}")
    if width == 1.0 and filters == int(filters):
        return int(filters)
    wanted = filters * width
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


def strides_for(input_shape: Sequence[int], strides: Sequence[int], last: int = 4) -> list[int]:
    """The strides of a network for large images, for an image that may be small: the first ones become 1.

    So many halvings remain that the last feature map has about `last` pixels on its shorter side: networks for 224
    pixels halve five times, those for 32 pixels three times.

    Args:
      input_shape: height, width, channels.
      strides: of each layer, in order, 1 or 2.
      last: pixels.

    Raises:
      ValueError: the input is no image.

    >>> strides_for((32, 32, 3), [2, 1, 2, 2, 2, 1, 2])
    [1, 1, 1, 2, 2, 1, 2]
    """
    require(
        len(input_shape) == 3 and all(input_shape),
        f"the network takes images of one size, (height, width, channels), received {tuple(input_shape)}",
    )
    spare = sum(each == 2 for each in strides) - max(0, round(math.log2(min(input_shape[:2]) / last)))
    found = list(strides)
    for place in [place for place, each in enumerate(strides) if each == 2][: max(0, spare)]:
        found[place] = 1
    return found


def conv_bn(x: Any, filters: int, name: str, *, kernel: int = 3, strides: int = 1) -> Any:
    """A convolution and its BatchNormalization."""
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_bn")(x)


def conv_bn_relu(x: Any, filters: int, name: str, *, kernel: int = 3, strides: int = 1) -> Any:
    """A convolution, its BatchNormalization and a ReLU."""
    return layers.ReLU(name=f"{name}_relu")(conv_bn(x, filters, name, kernel=kernel, strides=strides))


def depthwise_bn(x: Any, name: str, *, kernel: int = 3, strides: int = 1) -> Any:
    """A depthwise convolution and its BatchNormalization."""
    x = layers.DepthwiseConv2D(kernel, strides, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    return layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_depthwise_bn")(x)


def classifier(inputs: Any, features: Any, classes: int, name: str, dropout: float = 0.0) -> keras.Model:
    """A model that ends with probabilities; without dropout there is no layer for it."""
    x = layers.Dropout(dropout, name="dropout")(features) if dropout else features
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name=name)
