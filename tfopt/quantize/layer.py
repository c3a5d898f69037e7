"""What all quantized layers share."""

from typing import Any

import keras
import tensorflow as tf


class QuantizedLayer(keras.layers.Layer):
    """A layer that computes as the integer file will.

    It has two ways to compute: with its variables, for training, and, between `freeze` and `thaw`, with constants
    that LiteRT's converter reads as integers and scales. It always computes in float32: 16-bit floats cannot hold
    the rounding.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.supports_masking = True
        # Whether ranges and statistics follow the data in training; ended before the last steps.
        self.watches = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's, unless a layer says otherwise."""
        return input_shape

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes with constants from here on, as the file will.

        Args:
          input_scale: the smallest step among the layer's quantized inputs, above 0; None without such inputs.
          output_scale: the step of what reads its output, above 0; None where several do, or none that is quantized
            with 8 bits.
        """
        for inner in self._inner():
            inner.freeze(None, None)

    def thaw(self) -> None:
        """Computes with its variables again."""
        for inner in self._inner():
            inner.thaw()

    def _inner(self) -> list["QuantizedLayer"]:
        inner = self._flatten_layers(include_self=False, recursive=False)
        return [each for each in inner if isinstance(each, QuantizedLayer)]


@keras.saving.register_keras_serializable("tfopt")
class Unmasked(QuantizedLayer):
    """The same values without a mask."""

    def call(self, inputs: Any) -> Any:
        """Another tensor, to which no mask is attached."""
        return tf.identity(inputs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None."""
