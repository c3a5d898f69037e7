"""Small, efficient architectures, each a function of the input's shape and the number of classes."""

import os
import pathlib

import keras
from keras import layers

from tfopt.config import did_you_mean

# Keras' 0.99 wants thousands of steps before inference sees the statistics that training does.
_MOMENTUM = 0.9


def _conv_bn_relu(x: object, filters: int, name: str, *, kernel: int = 3, strides: int = 1) -> object:
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


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
    x = _conv_bn_relu(x, filters, "block1")
    x = layers.MaxPooling2D(name="pool")(x)
    x = _conv_bn_relu(x, 2 * filters, "block2")
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(dropout, name="dropout1")(x)
    x = layers.Dense(2 * filters, activation="relu", name="hidden")(x)
    x = layers.Dropout(dropout, name="dropout2")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name="cnn")


def ds_cnn(input_shape: tuple[int, ...], classes: int, filters: int = 64, blocks: int = 4) -> keras.Model:
    """A convolution and depthwise separable blocks.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      filters: of every convolution.
      blocks: depthwise separable blocks, the second of them with stride 2.

    Source: Zhang et al., Hello Edge, 2017, arXiv:1711.07128, section 4.5.

    >>> ds_cnn((28, 28, 1), 10).count_params()
    22218
    """
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn_relu(inputs, filters, "stem", strides=2)
    for index in range(1, blocks + 1):
        name, strides = f"block{index}", 2 if index == 2 else 1
        x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
        x = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_depthwise_bn")(x)
        x = layers.ReLU(name=f"{name}_depthwise_relu")(x)
        x = _conv_bn_relu(x, filters, name, kernel=1)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name="ds_cnn")


def resnet8(input_shape: tuple[int, ...], classes: int, filters: int = 16) -> keras.Model:
    """A ResNet of three residual stacks, as in MLPerf Tiny's image classification.

    Args:
      input_shape: height, width, channels.
      classes: outputs, with softmax.
      filters: of the first stack; each further one has twice as many at half the resolution.

    Source: He et al., Deep Residual Learning, 2016, arXiv:1512.03385; Banbury et al., MLPerf Tiny, 2021,
    arXiv:2106.07597.

    >>> resnet8((32, 32, 3), 10).count_params()
    78426
    """
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn_relu(inputs, filters, "stem")
    for index in range(1, 4):
        name, width, strides = f"stack{index}", filters * 2 ** (index - 1), 1 if index == 1 else 2
        y = _conv_bn_relu(x, width, f"{name}_a", strides=strides)
        y = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_b_conv")(y)
        y = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_b_bn")(y)
        if index > 1:
            x = layers.Conv2D(width, 1, strides, padding="same", name=f"{name}_shortcut")(x)
        x = layers.Add(name=f"{name}_add")([x, y])
        x = layers.ReLU(name=f"{name}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name="resnet8")


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
