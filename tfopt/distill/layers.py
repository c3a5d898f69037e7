"""Looking into a model while it computes, and bringing what is seen to another number of channels."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import did_you_mean, require
from tfopt.graph import deep_graphs, functional

Shape = tuple[int | None, ...]


class Projection(keras.layers.Layer):
    """A matrix over the channels, for training only: features without bias, so that masked zeros stay zeros."""

    def __init__(self, channels: int, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.channels, self.seed = channels, seed

    def build(self, shape: Shape) -> None:
        """Makes the matrix."""
        # No "kernel": it is neither pruned nor clustered with the student's.
        self.matrix = self.add_weight(
            name="matrix",
            shape=(shape[-1], self.channels),
            initializer=keras.initializers.GlorotUniform(self.seed),
        )

    def call(self, features: Any) -> Any:
        """The features with other channels."""
        rows = tf.matmul(tf.reshape(features, [-1, features.shape[-1]]), tf.convert_to_tensor(self.matrix))
        made = tf.reshape(rows, tf.concat([tf.shape(features)[:-1], [self.channels]], 0))
        made.set_shape((*features.shape[:-1], self.channels))
        return made


class Watched:
    """A functional model that gives what some of its layers give, too.

    Not a layer, so that Keras does not count the model's layers twice.

    Raises:
      ValueError: the model has no graph of layers, or no such layer.
    """

    @deep_graphs()
    def __init__(self, model: keras.Model, names: Sequence[str], whose: str) -> None:
        graph = functional(model, model.name)
        outputs = [_output_of(model, name, whose) for name in names]
        self.shapes: list[Shape] = [tuple(each.shape) for each in outputs]
        self._model = keras.Model(graph._inputs_struct, [graph._outputs_struct, outputs], name=model.name)
        # What the layers gave in the last call.
        self.features: list[tf.Tensor] = []

    def __call__(self, x: Any, training: bool | None = None) -> Any:
        """The model's outputs."""
        outputs, self.features = self._model(x, training=training)
        return outputs


def masked(features: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Features in float32, zero where `like` is masked, if they have as many places."""
    values, mask = tf.cast(features, tf.float32), getattr(like, "_keras_mask", None)
    if mask is None or values.shape[1 : len(mask.shape)] != like.shape[1 : len(mask.shape)]:
        return values
    shape = tf.concat([tf.shape(mask), tf.ones([len(values.shape) - len(mask.shape)], tf.int32)], 0)
    return values * tf.reshape(tf.cast(mask, tf.float32), shape)


def _output_of(model: keras.Model, name: str, whose: str) -> Any:
    names = [layer.name for layer in model.layers]
    require(name in names, f"the {whose} {model.name!r} has no layer {name!r}; {did_you_mean(name, names)}")
    try:
        output = model.get_layer(name).output
    except (AttributeError, ValueError) as error:
        raise ValueError(f"the layer {name!r} of the {whose} {model.name!r} has no one output: {error}") from error
    require(
        isinstance(output, keras.KerasTensor) and len(output.shape) >= 2 and output.shape[-1] is not None,
        f"the layer {name!r} of the {whose} {model.name!r} gives {output}: take one that gives channels along the "
        "last axis",
    )
    return output
