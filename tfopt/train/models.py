"""Small, efficient architectures, each a function of the input's shape and the number of classes."""

import os
import pathlib

import keras
from keras import layers

from tfopt.config import did_you_mean
from tfopt.train.blocks import classifier, conv_bn, conv_bn_relu, depthwise_bn, scaled
from tfopt.train.mobile import efficientnet_lite, mobilenet_v2, mobilenet_v3

__all__ = [
    "cnn",
    "ds_cnn",
    "efficientnet_lite",
    "mobilenet_v2",
    "mobilenet_v3",
    "resnet8",
    "resnet20",
    "transfer",
]


def cnn(
    input_shape: tuple[int, ...], classes: int, filters: int = 32, dropout: float = 0.3, shift: float = 0.0
) -> keras.Model:
    """Two convolutions and two dense layers, for small images.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      filters: of the first convolution; the second convolution and the hidden layer have twice as many.
      dropout: fraction of inputs dropped before each dense layer in training, in [0, 1).
      shift: in training, images are moved at random by up to this fraction of their size, in [0, 1).

    >>> cnn((8, 8, 1), 10).count_params()
    85354
    """
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    if shift:
        x = layers.RandomTranslation(shift, shift, fill_mode="constant", name="shift")(x)
    x = conv_bn_relu(x, filters, "block1")
    x = layers.MaxPooling2D(name="pool")(x)
    x = conv_bn_relu(x, 2 * filters, "block2")
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(dropout, name="dropout1")(x)
    x = layers.Dense(2 * filters, activation="relu", name="hidden")(x)
    x = layers.Dropout(dropout, name="dropout2")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name="cnn")


def ds_cnn(
    input_shape: tuple[int, ...], classes: int, filters: int = 64, blocks: int = 4, width: float = 1.0
) -> keras.Model:
    """A convolution and depthwise separable blocks.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      filters: of every convolution.
      blocks: depthwise separable blocks, the second of them with stride 2.
      width: what the filters are multiplied by, above 0; rounded to multiples of 8.

    Source: Zhang et al., Hello Edge, 2017, arXiv:1711.07128, section 4.5.

    >>> ds_cnn((28, 28, 1), 10).count_params()
    22218
    """
    filters = scaled(filters, width)
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, filters, "stem", strides=2)
    for index in range(1, blocks + 1):
        name, strides = f"block{index}", 2 if index == 2 else 1
        x = layers.ReLU(name=f"{name}_depthwise_relu")(depthwise_bn(x, name, strides=strides))
        x = conv_bn_relu(x, filters, name, kernel=1)
    return classifier(inputs, layers.GlobalAveragePooling2D(name="average")(x), classes, "ds_cnn")


def resnet8(input_shape: tuple[int, ...], classes: int, filters: int = 16, width: float = 1.0) -> keras.Model:
    """A ResNet of three residual stacks, as in MLPerf Tiny's image classification.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      filters: of the first stack; each further one has twice as many at half the resolution.
      width: what the filters are multiplied by, above 0; rounded to multiples of 8.

    Source: He et al., Deep Residual Learning, 2016, arXiv:1512.03385; Banbury et al., MLPerf Tiny, 2021,
    arXiv:2106.07597.

    >>> resnet8((32, 32, 3), 10).count_params()
    78426
    """
    return _resnet(input_shape, classes, scaled(filters, width), 1, "resnet8")


def resnet20(input_shape: tuple[int, ...], classes: int, filters: int = 16, width: float = 1.0) -> keras.Model:
    """A ResNet of three stacks of three residual blocks, as for CIFAR-10, with a 1 x 1 convolution where they change.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      filters: of the first stack; each further one has twice as many at half the resolution.
      width: what the filters are multiplied by, above 0; rounded to multiples of 8.

    Source: He et al., Deep Residual Learning, 2016, arXiv:1512.03385, section 4.2.

    >>> resnet20((32, 32, 3), 10).count_params()
    273754
    """
    return _resnet(input_shape, classes, scaled(filters, width), 3, "resnet20")


def _resnet(input_shape: tuple[int, ...], classes: int, filters: int, blocks: int, name: str) -> keras.Model:
    """Three stacks of residual blocks."""
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, filters, "stem")
    for stack in range(1, 4):
        for block in range(1, blocks + 1):
            part = f"stack{stack}" if blocks == 1 else f"stack{stack}_block{block}"
            channels, narrows = filters * 2 ** (stack - 1), stack > 1 and block == 1
            y = conv_bn_relu(x, channels, f"{part}_a", strides=2 if narrows else 1)
            y = conv_bn(y, channels, f"{part}_b")
            if narrows:
                x = layers.Conv2D(channels, 1, 2, padding="same", name=f"{part}_shortcut")(x)
            x = layers.Add(name=f"{part}_add")([x, y])
            x = layers.ReLU(name=f"{part}_relu")(x)
    return classifier(inputs, layers.GlobalAveragePooling2D(name="average")(x), classes, name)


def transfer(
    input_shape: tuple[int, ...],
    classes: int,
    base: str | os.PathLike[str] = "MobileNetV2",
    weights: str | None = "imagenet",
    dropout: float = 0.2,
) -> keras.Model:
    """A trained network with a new head, for training on few images: first of the head alone, then of all.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax; the head is the layer "probabilities".
      base: name of a network in `keras.applications`, or the path of a trained classifier, a file that
        `tfopt.load_model` reads: all before its last dense layer is taken.
      weights: of a network by name: "imagenet", which Keras downloads at the first use, the path of a weights file, or
        None for new ones.
      dropout: fraction of the features dropped before the head in training, in [0, 1).

    Raises:
      ValueError: an unknown name, or a file of no classifier.

    >>> transfer((32, 32, 3), 4, weights=None).layers[-1].name
    'probabilities'
    """
    if pathlib.Path(base).suffix or os.sep in str(base):
        features = _before_the_head(base, input_shape)
    else:
        make = getattr(keras.applications, str(base), None)
        if not callable(make):
            names = [name for name in dir(keras.applications) if name[0].isupper()]
            raise ValueError(f"keras.applications has no network {base!r}; {did_you_mean(base, names)}")
        features = make(include_top=False, weights=weights, input_shape=input_shape, pooling="avg")
    x = layers.Dropout(dropout, name="head_dropout")(features.outputs[0])
    x = layers.Dense(classes, activation="softmax", name="probabilities")(x)
    return keras.Model(features.inputs[0], x, name="transfer")


def _before_the_head(path: str | os.PathLike[str], input_shape: tuple[int, ...]) -> keras.Model:
    # The loader is not needed, and not loaded, for networks by name.
    from tfopt.load import load_model

    model = load_model(path)
    dense = [layer for layer in model.layers if isinstance(layer, layers.Dense)]
    if not dense or len(model.inputs) != 1:
        raise ValueError(f"{path} is no classifier of one input with a dense layer: {model.name!r} cannot be a base")
    features = keras.Model(model.inputs[0], dense[-1].input)
    moved = keras.models.clone_model(features, input_tensors=keras.Input(input_shape, name="image"))
    moved.set_weights(features.get_weights())
    return moved
