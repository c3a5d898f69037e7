"""Images, models and measures for the tests of tfopt.compat."""

import gzip
import os
import pathlib

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

import tfopt
from tfopt.tflite.run import predict_tflite

COMPILED = {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy", "jit_compile": False}
MSE = {"optimizer": "sgd", "loss": "mse", "jit_compile": False}
LOSS = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "metrics": ["accuracy"]}
X, Y = np.random.default_rng(0).normal(size=(20, 8)), np.ones((20, 4))


def images(name):
    """(training images, their labels, test images, their labels): 28 x 28 of [0, 1]; "digits" need no download."""
    if name == "digits":
        bundle = sklearn.datasets.load_digits()
        small = bundle.images.astype("float32") / 16
        large = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
        return large[:1500], bundle.target[:1500], large[1500:], bundle.target[1500:]
    import tensorflow_datasets as tfds

    folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    try:
        splits = tfds.load(name, data_dir=os.path.expanduser(folder), download=False, batch_size=-1)
    except (tfds.core.DatasetNotFoundError, AssertionError, FileNotFoundError):
        pytest.skip(f"{name} is not under {folder}: set TFDS_DATA_DIR to a folder that has it")
    arrays = {split: {key: each.numpy() for key, each in values.items()} for split, values in splits.items()}
    train, test = arrays["train"], arrays["test"]

    def scaled(split):
        return split["image"].squeeze().astype("float32") / 255

    return scaled(train), train["label"], scaled(test), test["label"]


def mnist_model():
    """The network of the tutorials on MNIST."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.InputLayer(shape=(28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def kernels(model):
    """The kernels of a model by name, as the tutorials print them."""
    return {
        f"{layer.name}/{weight.name}": np.asarray(weight)
        for layer in model.layers
        for weight in layer.weights
        if "kernel" in weight.name and "pulling" not in weight.name
    }


def sparsities(model):
    return {name: float((kernel == 0).mean()) for name, kernel in kernels(model).items()}


def zipped(path):
    """The size of a file under gzip."""
    return len(gzip.compress(pathlib.Path(path).read_bytes()))


def accuracy(path, x, y):
    """The accuracy of a .tflite file."""
    return float((predict_tflite(path, x).argmax(-1) == y).mean())


def names(model):
    return [layer.name for layer in model.layers]


def convert(model, path, quantize=True, examples=None):
    """The tutorials' conversion; gives what is in the file."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if examples is not None:
        converter.representative_dataset = lambda: ([each[None]] for each in examples)
    path.write_bytes(converter.convert())
    return tfopt.measure_tflite(path)


def dense_net():
    layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(4, name="out")]
    return keras.Sequential([keras.Input((8,)), *layers])


def fitted(model, callbacks=()):
    model.compile(**MSE)
    model.fit(X, Y, verbose=0, callbacks=list(callbacks))
    return model
