"""`QuantizedScale`: multiplies and shifts each channel, as a depthwise convolution of 1 x 1 in the file."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.quantize import batch_norm as bn
from tfopt.quantize.integers import largest_integer, scales_that_hold, uneven
from tfopt.quantize.layer import QuantizedLayer


@keras.saving.register_keras_serializable("tfopt")
class QuantizedScale(QuantizedLayer):
    """One or more layers, one behind the other, each of which multiplies and shifts the channels.

    Args:
      parts: BatchNormalization that no convolution precedes, Rescaling, Normalization, ConvNeXt's LayerScale; over
        the last axis.

    >>> layer = QuantizedScale([layers.Rescaling(1 / 255), layers.Rescaling(2.0, offset=-1.0)])
    >>> layer(np.array([[255.0]])).numpy()
    array([[1.]], dtype=float32)
    """

    def __init__(self, parts: Sequence[keras.layers.Layer], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = list(parts)
        self.frozen: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def build(self, input_shape: Any) -> None:
        """Builds the layers inside."""
        self.rank, self.channels = len(input_shape), input_shape[-1]
        for layer in self.parts:
            if not layer.built:
                layer.build(input_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The layers themselves; for the file, their convolution."""
        if self.frozen is not None:
            return multiply_channels(inputs, *self.frozen)
        for layer in self.parts:
            if isinstance(layer, layers.BatchNormalization):
                inputs = bn.normalize(layer, inputs, training and self.watches)
            else:
                inputs = layer(inputs)
        return inputs

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "parts": [keras.saving.serialize_keras_object(each) for each in self.parts]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedScale":
        """From what `get_config` gave."""
        parts = [keras.saving.deserialize_keras_object(each) for each in config["parts"]]
        return cls(**{**config, "parts": parts})

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes with constants from here on, as the file will."""
        factor, shift = np.ones(self.channels), np.zeros(self.channels)
        for layer in self.parts:
            gain, offset = self._factor_and_shift(layer)
            factor, shift = factor * gain, shift * gain + offset
        self.frozen = integer_channels(factor, shift, input_scale)

    def thaw(self) -> None:
        """Computes with its variables again."""
        self.frozen = None

    def _factor_and_shift(self, layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
        """The layer as x * factor + shift; arrays of shape (channels,)."""
        if isinstance(layer, layers.BatchNormalization):
            return bn.fold(layer)
        # Affine in each channel, whatever the layer's own arithmetic.
        shape = (1,) * (self.rank - 1) + (self.channels,)
        at = [keras.ops.convert_to_numpy(layer(np.full(shape, value, "float32"))).ravel() for value in (0.0, 256.0)]
        return (at[1] - at[0]) / 256.0, at[0]


def integer_channels(
    factor: np.ndarray, shift: np.ndarray, input_scale: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors, the value of each one's largest integer, and shifts, as the file will hold them.

    Args:
      factor: of each channel, shape (channels,).
      shift: likewise.
      input_scale: step of what is multiplied, above 0; None where that is float.
    """
    limit = largest_integer(8)
    scales = scales_that_hold(np.maximum(np.abs(factor) / limit, 1e-12), shift, input_scale)
    return factor, scales * limit, uneven(shift)


def multiply_channels(inputs: tf.Tensor, factor: np.ndarray, ends: np.ndarray, shift: np.ndarray) -> tf.Tensor:
    """`inputs * factor + shift` over the last axis, in operators from which the converter reads integers."""
    channels = factor.size
    kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        factor.reshape(1, 1, 1, -1).astype("float32"), -ends, ends, narrow_range=True
    )
    kernel = tf.reshape(kernel, (1, 1, channels, 1))
    sizes = tf.shape(inputs)
    image = inputs if len(inputs.shape) == 4 else tf.reshape(inputs, (sizes[0], -1, 1, channels))
    outputs = tf.nn.depthwise_conv2d(image, kernel, (1, 1, 1, 1), "VALID") + shift
    return outputs if len(inputs.shape) == 4 else tf.reshape(outputs, sizes)
