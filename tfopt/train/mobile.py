"""Networks of inverted residuals: MobileNetV2, MobileNetV3 and EfficientNet-Lite, for images of 28 pixels and more."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfopt.config import require
from tfopt.train.blocks import classifier, conv_bn, depthwise_bn, scaled, strides_for


@dataclasses.dataclass(frozen=True)
class Block:
    """An inverted residual: 1 x 1 to `expand` times as many channels, depthwise, 1 x 1 back to `filters`."""

    filters: int
    expand: float
    kernel: int = 3
    strides: int = 1
    squeeze: bool = False
    activation: str = "relu6"


def mobilenet_v2(
    input_shape: tuple[int, ...], classes: int, width: float = 1.0, head: int = 1280, dropout: float = 0.0
) -> keras.Model:
    """MobileNetV2: inverted residuals with linear bottlenecks.

    Its strides are those for large images; for small ones the first of them become 1, so that the last feature map has
    some 4 x 4 pixels.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      width: what the filters of every layer are multiplied by, above 0; rounded to multiples of 8.
      head: filters of the last convolution; widths above 1 multiply it too.
      dropout: fraction of the features dropped before the last layer in training, in [0, 1).

    Source: Sandler et al., MobileNetV2, 2018, arXiv:1801.04381, table 2.

    >>> mobilenet_v2((32, 32, 3), 10, width=0.35).count_params()
    423018
    """
    table = [(16, 1, 1, 1), (24, 6, 2, 2), (32, 6, 3, 2), (64, 6, 4, 2), (96, 6, 3, 1), (160, 6, 3, 2), (320, 6, 1, 1)]
    blocks = [
        Block(scaled(filters, width), expand, strides=strides if number == 0 else 1)
        for filters, expand, repeats, strides in table
        for number in range(repeats)
    ]
    inputs, x = _body(input_shape, scaled(32, width), blocks, "relu6")
    x = _activation(conv_bn(x, scaled(head, max(1.0, width)), "head", kernel=1), "relu6", "head")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return classifier(inputs, x, classes, "mobilenet_v2", dropout)


_SMALL = [
    (16, 16, 3, True, "relu", 2),
    (72, 24, 3, False, "relu", 2),
    (88, 24, 3, False, "relu", 1),
    (96, 40, 5, True, "hard_silu", 2),
    (240, 40, 5, True, "hard_silu", 1),
    (240, 40, 5, True, "hard_silu", 1),
    (120, 48, 5, True, "hard_silu", 1),
    (144, 48, 5, True, "hard_silu", 1),
    (288, 96, 5, True, "hard_silu", 2),
    (576, 96, 5, True, "hard_silu", 1),
    (576, 96, 5, True, "hard_silu", 1),
]
_LARGE = [
    (16, 16, 3, False, "relu", 1),
    (64, 24, 3, False, "relu", 2),
    (72, 24, 3, False, "relu", 1),
    (72, 40, 5, True, "relu", 2),
    (120, 40, 5, True, "relu", 1),
    (120, 40, 5, True, "relu", 1),
    (240, 80, 3, False, "hard_silu", 2),
    (200, 80, 3, False, "hard_silu", 1),
    (184, 80, 3, False, "hard_silu", 1),
    (184, 80, 3, False, "hard_silu", 1),
    (480, 112, 3, True, "hard_silu", 1),
    (672, 112, 3, True, "hard_silu", 1),
    (672, 160, 5, True, "hard_silu", 2),
    (960, 160, 5, True, "hard_silu", 1),
    (960, 160, 5, True, "hard_silu", 1),
]


def mobilenet_v3(
    input_shape: tuple[int, ...], classes: int, size: str = "small", width: float = 1.0, dropout: float = 0.2
) -> keras.Model:
    """MobileNetV3: inverted residuals with gates (squeeze and excite) and hard swish.

    For small images the first strides become 1, as in `mobilenet_v2`.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      size: "small" or "large".
      width: what the filters of every layer are multiplied by, above 0; rounded to multiples of 8.
      dropout: fraction of the features dropped before the last layer in training, in [0, 1).

    Raises:
      ValueError: another size.

    Source: Howard et al., Searching for MobileNetV3, 2019, arXiv:1905.02244, tables 1 and 2.

    >>> mobilenet_v3((32, 32, 3), 10, width=0.35).count_params()
    339378
    """
    require(size in ("small", "large"), f'size must be "small" or "large", received {size!r}')
    table, hidden = (_SMALL, 1024) if size == "small" else (_LARGE, 1280)
    blocks, before = [], 16
    for expanded, filters, kernel, squeeze, activation, strides in table:
        # The paper counts the expanded channels; a ratio follows the width of what comes in.
        blocks.append(Block(scaled(filters, width), expanded / before, kernel, strides, squeeze, activation))
        before = filters
    inputs, x = _body(input_shape, scaled(16, width), blocks, "hard_silu")
    x = _activation(conv_bn(x, 6 * x.shape[-1], "head", kernel=1), "hard_silu", "head")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dense(scaled(hidden, max(1.0, width)), name="hidden")(x)
    x = layers.Activation("hard_silu", name="hidden_hard_silu")(x)
    return classifier(inputs, x, classes, f"mobilenet_v3_{size}", dropout)


def efficientnet_lite(
    input_shape: tuple[int, ...], classes: int, width: float = 1.0, depth: float = 1.0, dropout: float = 0.2
) -> keras.Model:
    """EfficientNet-Lite: EfficientNet without gates and with ReLU6, made for integers.

    For small images the first strides become 1, as in `mobilenet_v2`. Widths and depths of the published ones: Lite0
    1.0 and 1.0, Lite1 1.0 and 1.1, Lite2 1.1 and 1.2, Lite3 1.2 and 1.4, Lite4 1.4 and 1.8.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      width: what the filters are multiplied by, above 0; rounded to multiples of 8. Widths above 1 leave the first and
        the last convolution as they are, as in the original, which has none below 1.
      depth: what the number of blocks at each resolution is multiplied by, above 0; rounded up, the first and the last
        resolution as they are.
      dropout: fraction of the features dropped before the last layer in training, in [0, 1).

    Source: Tan and Le, EfficientNet, 2019, arXiv:1905.11946; Liu, Higher accuracy on vision models with
    EfficientNet-Lite, TensorFlow Blog, 2020.

    >>> efficientnet_lite((32, 32, 3), 10, width=0.35).count_params()
    476202
    """
    require(depth > 0, f"depth must be above 0, received {depth!r}")
    table = [
        (16, 1, 3, 1, 1),
        (24, 6, 3, 2, 2),
        (40, 6, 5, 2, 2),
        (80, 6, 3, 3, 2),
        (112, 6, 5, 3, 1),
        (192, 6, 5, 4, 2),
        (320, 6, 3, 1, 1),
    ]
    blocks = [
        Block(scaled(filters, width), expand, kernel, strides if number == 0 else 1)
        for place, (filters, expand, kernel, repeats, strides) in enumerate(table)
        for number in range(repeats if place in (0, len(table) - 1) else math.ceil(depth * repeats))
    ]
    narrow = min(1.0, width)
    inputs, x = _body(input_shape, scaled(32, narrow), blocks, "relu6")
    x = _activation(conv_bn(x, scaled(1280, narrow), "head", kernel=1), "relu6", "head")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return classifier(inputs, x, classes, "efficientnet_lite", dropout)


def _body(input_shape: tuple[int, ...], stem: int, blocks: Sequence[Block], activation: str) -> tuple[Any, Any]:
    """The input, and what the blocks make of it."""
    first, *strides = strides_for(input_shape, [2, *(each.strides for each in blocks)])
    inputs = keras.Input(input_shape, name="image")
    x = _activation(conv_bn(inputs, stem, "stem", strides=first), activation, "stem")
    for number, (block, stride) in enumerate(zip(blocks, strides, strict=True), 1):
        # Where the original makes an image smaller, its block has no shortcut.
        x = _inverted_residual(x, block, stride, f"block{number}", shortcut=block.strides == 1)
    return inputs, x


def _inverted_residual(x: Any, block: Block, strides: int, name: str, shortcut: bool) -> Any:
    before, channels = x, x.shape[-1]
    expanded = channels if block.expand == 1 else scaled(channels, block.expand)
    if block.expand != 1:
        x = _activation(conv_bn(x, expanded, f"{name}_expand", kernel=1), block.activation, f"{name}_expand")
    x = depthwise_bn(x, name, kernel=block.kernel, strides=strides)
    x = _activation(x, block.activation, f"{name}_depthwise")
    if block.squeeze:
        x = _gate(x, f"{name}_squeeze")
    x = conv_bn(x, block.filters, f"{name}_project", kernel=1)
    if shortcut and channels == block.filters:
        x = layers.Add(name=f"{name}_add")([before, x])
    return x


def _gate(x: Any, name: str) -> Any:
    """Squeeze and excite, with a quarter of the channels inside."""
    channels = x.shape[-1]
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_average")(x)
    gate = layers.Conv2D(scaled(channels, 0.25), 1, name=f"{name}_reduce")(gate)
    gate = layers.ReLU(name=f"{name}_relu")(gate)
    gate = layers.Conv2D(channels, 1, name=f"{name}_expand")(gate)
    gate = layers.Activation("hard_sigmoid", name=f"{name}_hard_sigmoid")(gate)
    return layers.Multiply(name=f"{name}_multiply")([x, gate])


def _activation(x: Any, activation: str, name: str) -> Any:
    if activation == "hard_silu":
        return layers.Activation("hard_silu", name=f"{name}_hard_silu")(x)
    return layers.ReLU(6.0 if activation == "relu6" else None, name=f"{name}_{activation}")(x)
