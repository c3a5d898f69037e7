"""The models and flags of the step benchmarks; models for Keras 3 and for tf_keras alike."""

from collections.abc import Callable
from typing import Any

from absl import flags

STEPS = flags.DEFINE_integer("steps", 20, "Training steps in a turn.", lower_bound=1)

SHAPES = {"ds_cnn": (28, 28, 1), "mobilenet_v2": (96, 96, 3)}
BATCHES = {"ds_cnn": 128, "mobilenet_v2": 32}
CLASSES = 10


def ds_cnn(library: Any) -> Any:
    """`tfopt.models.ds_cnn`, in either Keras."""
    layers = library.layers
    inputs = library.Input(SHAPES["ds_cnn"], name="image")
    x = inputs
    for index in range(5):
        if index:
            x = layers.DepthwiseConv2D(3, 2 if index == 2 else 1, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        kernel, strides = (1, 1) if index else (3, 2)
        x = layers.Conv2D(64, kernel, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return library.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


def mobilenet_v2(library: Any) -> Any:
    """MobileNetV2 of width 0.35, in either Keras."""
    return library.applications.MobileNetV2(SHAPES["mobilenet_v2"], alpha=0.35, weights=None, classes=CLASSES)


MODELS: dict[str, Callable[[Any], Any]] = {"ds_cnn": ds_cnn, "mobilenet_v2": mobilenet_v2}
