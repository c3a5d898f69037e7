"""`QuantizedScale`: multiplies and shifts each channel, as a depthwise convolution of 1 x 1 in the file."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.quantize import batch_norm as bn
from tfopt.quantize.integers import largest_integer, scales_that_hold
from tfopt.quantize.layer import QuantizedLayer

SCALES = (layers.BatchNormalization, layers.Rescaling, layers.Normalization)


@keras.saving.register_keras_serializable("tfopt")
class QuantizedScale(QuantizedLayer):
    """A BatchNormalization that no convolution precedes, a Rescaling or a Normalization.

    Args:
      layer: one of `SCALES`, over the last axis.

    >>> layer = QuantizedScale(layers.Rescaling(1 / 255, offset=-0.5))
    >>> layer(np.array([[255.0]])).numpy()
    array([[0.5]], dtype=float32)
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.frozen: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def build(self, input_shape: Any) -> None:
        """Builds the layer inside."""
        self.rank, self.channels = len(input_shape), input_shape[-1]
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The layer itself; for the file, its convolution."""
        if self.frozen is not None:
            return self._convolve(inputs, *self.frozen)
        if isinstance(self.layer, layers.BatchNormalization):
            return bn.normalize(self.layer, inputs, training and self.watches)
        return self.layer(inputs)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedScale":
        """From what `get_config` gave."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes with constants from here on, as the file will."""
        factor, shift = self._factor_and_shift()
        limit = largest_integer(8)
        scales = scales_that_hold(np.maximum(np.abs(factor) / limit, 1e-12), shift, input_scale)
        self.frozen = factor, scales * limit, shift

    def thaw(self) -> None:
        """Computes with its variables again."""
        self.frozen = None

    def _factor_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """The layer as x * factor + shift; arrays of shape (channels,)."""
        if isinstance(self.layer, layers.BatchNormalization):
            return bn.fold(self.layer)
        # Affine in each channel, whatever the layer's own arithmetic.
        shape = (1,) * (self.rank - 1) + (self.channels,)
        at = [
            keras.ops.convert_to_numpy(self.layer(np.full(shape, value, "float32"))).ravel() for value in (0.0, 256.0)
        ]
        return (at[1] - at[0]) / 256.0, at[0]

    def _convolve(self, inputs: tf.Tensor, factor: np.ndarray, ends: np.ndarray, shift: np.ndarray) -> tf.Tensor:
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            factor.reshape(1, 1, 1, -1).astype("float32"), -ends, ends, narrow_range=True
        )
        kernel = tf.reshape(kernel, (1, 1, self.channels, 1))
        sizes = tf.shape(inputs)
        image = inputs if len(inputs.shape) == 4 else tf.reshape(inputs, (sizes[0], -1, 1, self.channels))
        outputs = tf.nn.depthwise_conv2d(image, kernel, (1, 1, 1, 1), "VALID") + shift.astype("float32")
        return outputs if len(inputs.shape) == 4 else tf.reshape(outputs, tf.shape(inputs))
