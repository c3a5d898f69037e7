"""What the tests share: tiny data and models, and the digits written once a session."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Nothing in the tests may reach for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
import pathlib

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt

# A busy machine may take long for an example.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
# Two logical CPUs let MirroredStrategy have two replicas on any machine.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same elements; the batches of the tests are too few to tune anything."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


# An iterator ends by waking its thread for autotuning, and TensorFlow 2.21 now and then loses that call: who deletes
# it, or collects it as garbage, waits for as long again as it has lived, up to a minute. Each iterator calls this.
tf.data.Dataset._apply_debug_options = without_autotuning
# The converter collects garbage at each export; what is imported by now never becomes garbage.
gc.freeze()

CLASSES = 3


def quick(names, *chosen):
    """Parameters: the chosen ones, and all others for the slow tests, where they share their code with a chosen one."""
    assert set(chosen) <= set(names)
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in chosen), id=str(name)) for name in names]


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def mirrored() -> tf.distribute.Strategy:
    """Two replicas; one strategy for all tests, since a second one in a process reuses the first one's keys."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> pathlib.Path:
    """A TFDS folder with the digits."""
    folder = tmp_path_factory.mktemp("tfds")
    tfopt.from_tfds("digits", folder)
    return folder


@pytest.fixture(scope="session")
def digits(digits_dir) -> tfopt.Data:
    return tfopt.from_tfds("digits", digits_dir, batch_size=64)


def blobs(size: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of 8 x 8 x 2 whose class shows in the mean of a quarter: learnt in a few steps."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, size)
    images = rng.normal(0, 0.5, (size, 8, 8, 2)).astype("float32")
    for index, label in enumerate(labels):
        images[index, 2 * label : 2 * label + 3] += 1.5
    return images, labels


@pytest.fixture(scope="session")
def data() -> tfopt.Data:
    return tfopt.from_arrays(blobs(), batch_size=24, name="blobs", class_names=tuple("abc"))


def small_model(dropout: float = 0.0) -> keras.Model:
    """A convolution, batch normalization and two dense layers; 1,771 parameters."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(momentum=0.8, name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="out")(x), name="small")


def residual_model(dropout: float = 0.0) -> keras.Model:
    """`small_model` with a residual block, the sum of which is called "sum", before its pooling."""
    layers = keras.layers
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(inputs)
    branch = layers.Conv2D(8, 3, padding="same", use_bias=False, name="branch")(x)
    branch = layers.BatchNormalization(momentum=0.8, name="bn")(branch)
    x = layers.ReLU(name="relu")(layers.Add(name="sum")([x, branch]))
    x = layers.Flatten(name="flatten")(layers.MaxPooling2D(2, name="pool")(x))
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="out")(x), name="residual")


@pytest.fixture(scope="session")
def trained() -> keras.Model:
    """A small model that has learnt the blobs; not to be changed."""
    x, y = blobs()
    keras.utils.set_random_seed(0)
    model = small_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    model.fit(x, y, batch_size=16, epochs=4, verbose=0)
    return model


@pytest.fixture
def broken_off():
    """Calls a function that trains, and breaks the training off when its first checkpoint has been written."""

    def call(function):
        written = tfopt.train.callbacks.write_checkpoint

        def write_then_fail(*arguments):
            written(*arguments)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tfopt.train.callbacks.write_checkpoint", write_then_fail)
            with pytest.raises(KeyboardInterrupt):
                function()

    return call
