"""Architectures for the tests of .tflite files, and their exports."""

import functools

import keras
import numpy as np
from keras import layers

from tfopt.tflite.export import export_tflite


def conv_net():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3), name="image"),
            layers.Conv2D(16, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="conv_net",
    )


def depthwise_net():
    inputs = keras.Input((10, 10, 3), name="image")
    x = layers.Conv2D(32, 3, activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    x = layers.Conv2D(48, 1)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="depthwise_net")


def two_by_two(nested=False):
    """Two inputs, two outputs, none of them in alphabetical order."""
    left, extra = keras.Input((8,), name="left"), keras.Input((6,), name="extra")
    x = layers.Dense(40, activation="relu")(layers.Concatenate()([left, extra]))
    x = layers.Dense(40, activation="relu")(x)
    zeta, alpha = layers.Dense(3, name="zeta")(x), layers.Dense(1, activation="sigmoid", name="alpha")(x)
    if nested:
        return keras.Model({"left": left, "extra": extra}, {"second": zeta, "first": alpha})
    return keras.Model([left, extra], [zeta, alpha], name="two_by_two")


def dense_net():
    return keras.Sequential(
        [
            keras.Input((20,), name="x"),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="tanh"),
            layers.Dense(3, name="y"),
        ],
        name="dense_net",
    )


def normal(model, count=32, seed=0):
    """Standard normal examples for a model of one input, or a tuple of them for several."""
    generator = np.random.default_rng(seed)
    arrays = [generator.normal(size=(count, *each.shape[1:])).astype("float32") for each in model.inputs]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def exporter(folder):
    """Gives (model, its examples, what export_tflite returned) of an architecture in a mode, made once."""

    @functools.cache
    def make(build, quantization):
        keras.utils.set_random_seed(0)
        model = build()
        x = normal(model)
        path = folder / f"{model.name}_{quantization}.tflite"
        data = x if quantization.startswith("int") else None
        return model, x, export_tflite(model, path, quantization, data)

    return make


def ones(*shape):
    return np.ones(shape, "float32")
