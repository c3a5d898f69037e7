"""`QuantizedLinear`: a convolution or dense layer whose weights are integers, with the BatchNormalization behind it."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.config import require
from tfopt.quantize import batch_norm as bn
from tfopt.quantize.convolve import DEPTHWISE, TRANSPOSED, channel_axes, convolve, with_height
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.integers import (
    SMALLEST_BIAS_STEP,
    largest_integer,
    rounding_excess,
    scales_that_hold,
    stored_bits,
    to_integers,
    uneven,
    weight_scales,
)
from tfopt.quantize.kernels import round_twice
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.neighbours import quantizer_behind, quantizers_before

# Below it, products of weights and inputs are still numbers.
_LARGEST = 1e30


@keras.saving.register_keras_serializable("tfopt")
class QuantizedLinear(QuantizedLayer):
    """A convolution, transposed convolution or dense layer that computes with rounded weights.

    Weights are rounded before the gain of the BatchNormalization is applied: folding it into the file multiplies
    scales and leaves the integers as they were trained. Dense and transposed layers have one scale in the file, so
    there the gain comes first.

    Args:
      layer: one of `convolve.LINEAR`, with a linear activation.
      batch_norm: the BatchNormalization behind it, or None.
      bits: of the weights, 2 to 8.
      packed: whether the file holds 4 bits as such, and not in int8.
      one_scale: one scale for all channels before the gain, for weights that have few different values.

    Source: Jacob et al., 2018, arXiv:1712.05877, section 3.2; Krishnamoorthi, 2018, arXiv:1806.08342, section 3.2.2.

    >>> layer = QuantizedLinear(keras.layers.Dense(1, use_bias=False), bits=4)
    >>> layer.build((None, 3))
    >>> layer.set_weights([np.array([[0.7], [0.33], [-0.02]])])
    >>> layer(np.eye(3)).numpy().ravel().round(4)
    array([0.7, 0.3, 0. ], dtype=float32)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        batch_norm: keras.layers.BatchNormalization | None = None,
        bits: int = 8,
        packed: bool = True,
        one_scale: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.layer, self.batch_norm, self.one_scale = layer, batch_norm, one_scale
        self.bits, self.packed = bits, packed
        self.frozen: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None

    def build(self, input_shape: Any) -> None:
        """Builds the layers inside."""
        if not self.layer.built:
            self.layer.build(input_shape)
        if self.batch_norm is not None and not self.batch_norm.built:
            self.batch_norm.build(self.layer.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """None behind a convolution, which mixes steps."""
        return previous_mask if self.layer.supports_masking else None

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The layer with rounded weights, then the BatchNormalization."""
        if self.frozen is not None:
            integers, scales, bias = self.frozen
            outputs = convolve(self.layer, inputs, self._constant_kernel(integers, scales), for_file=True)
            return outputs if bias is None else outputs + bias
        kernel, scales = self._rounded_kernel()
        outputs = convolve(self.layer, inputs, with_height(kernel, self.layer), for_file=False)
        if not training:
            return self._fold(outputs, scales)
        if self.layer.use_bias:
            outputs = outputs + self.layer.bias
        if self.batch_norm is not None:
            outputs = bn.normalize(self.batch_norm, outputs, self.watches)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        serialize = keras.saving.serialize_keras_object
        own = {"layer": serialize(self.layer), "batch_norm": self.batch_norm and serialize(self.batch_norm)}
        return {**super().get_config(), **own, "bits": self.bits, "packed": self.packed, "one_scale": self.one_scale}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedLinear":
        """From what `get_config` gave."""
        inner = {key: keras.saving.deserialize_keras_object(config[key]) for key in ("layer", "batch_norm")}
        return cls(**{**config, **inner})

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes with integer weights as constants from here on, BatchNormalization folded, as the file will.

        Raises:
          ValueError: the weights are too large for float32, or no numbers.
        """
        kernel = keras.ops.convert_to_numpy(self.layer.kernel)
        bias = keras.ops.convert_to_numpy(self.layer.bias) if self.layer.use_bias else np.zeros(())
        gain = np.ones(())
        if self.batch_norm is not None:
            gain, shift = bn.fold(self.batch_norm)
            bias = bias * gain + shift
            gain = gain.reshape(self._channels)
        if self._gain_first:
            kernel, gain = kernel * gain, np.ones(())
        scales = weight_scales(kernel, self._shared_axes, self.bits)
        integers = to_integers(kernel, scales, self.bits) * np.where(gain < 0, -1, 1)
        with np.errstate(over="ignore"):
            scales = scales * np.maximum(np.abs(gain), 1e-12)
        require(
            bool(np.all(scales * largest_integer(self.bits) < _LARGEST) and np.all(np.abs(bias) < _LARGEST)),
            f"the weights of {self.layer.name!r} reach {np.abs(kernel).max():.3g}, with the BatchNormalization behind "
            "them more than float32 holds: training has diverged. Lower its learning rate, or clip gradients",
        )
        wanted = np.abs(bias).max() if self._gain_first else np.abs(bias).reshape(self._channels if bias.ndim else ())
        held = scales_that_hold(scales, wanted, input_scale)
        integers = np.where(held > scales, to_integers(integers * scales, held, self.bits), integers)
        if self._rounds_twice and input_scale is not None and output_scale is not None:
            step = input_scale * (held.max() if self._gain_first else held.ravel())
            bias = bias - step * rounding_excess(step / output_scale)
        has_bias = self.layer.use_bias or self.batch_norm is not None
        self.frozen = integers, held, uneven(bias) if has_bias else None

    def reads(self) -> list[FakeQuant]:
        """The quantizers of what the layer reads; a layer around it that feeds it otherwise puts its own in place."""
        return quantizers_before(self)

    def thaw(self) -> None:
        """Computes with its variables again."""
        self.frozen = None

    @property
    def _channels(self) -> tuple[int, ...]:
        """The kernel's shape with 1 for all axes but those of the output channels."""
        rank = len(self.layer.kernel.shape)
        kept = {axis % rank for axis in channel_axes(self.layer)}
        return tuple(size if i in kept else 1 for i, size in enumerate(self.layer.kernel.shape))

    @property
    def _gain_first(self) -> bool:
        """Whether the gain is applied before the rounding: one scale cannot hold one for each channel."""
        return has_one_scale(self.layer)

    @property
    def _stored(self) -> int:
        """The bits of the file's integers."""
        return stored_bits(self.bits, self.packed)

    @property
    def _rounds_twice(self) -> bool:
        """Whether XNNPACK leaves the layer to LiteRT's built-in kernels, whose first rounding 4 bits make coarse."""
        return self._stored == 4 and not isinstance(self.layer, layers.Dense)

    @property
    def _shared_axes(self) -> tuple[int, ...]:
        """The axes of the kernel that share a scale."""
        one_scale = self.one_scale or self._gain_first
        return tuple(i for i, size in enumerate(self._channels) if one_scale or size == 1)

    def _fold(self, outputs: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        """Adds what follows the kernel as the file does: the BatchNormalization folded, the bias in whole steps."""
        bias = tf.convert_to_tensor(self.layer.bias) if self.layer.use_bias else None
        if self.batch_norm is not None:
            gain, shift = bn.gain_and_shift(self.batch_norm)
            outputs = outputs * gain
            bias = shift if bias is None else bias * gain + shift
            scales = scales if self._gain_first else scales * tf.reshape(tf.abs(gain), self._channels)
        if bias is None:
            return outputs
        quantizers = self.reads()
        if quantizers:
            step = tf.reduce_min([each.live_scale() for each in quantizers]) * tf.reshape(scales, (-1,))
            step = tf.maximum(step, tf.abs(bias) * SMALLEST_BIAS_STEP)
            behind = quantizer_behind(self)
            if self._rounds_twice and behind is not None and behind.bits == 8:
                return round_twice(outputs, bias, step, behind.live_scale())
            bias = tf.round(bias / step) * step
        return outputs + bias

    def _rounded_kernel(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The kernel on its grid, and its scales; the gradient passes as if it were not rounded."""
        kernel = tf.convert_to_tensor(self.layer.kernel)
        gain = None
        if self.batch_norm is not None and self._gain_first:
            gain = tf.reshape(tf.stop_gradient(bn.gain(self.batch_norm)), self._channels)
            kernel = kernel * gain
        largest = tf.reduce_max(tf.abs(kernel), self._shared_axes, keepdims=True)
        scales = tf.maximum(largest / largest_integer(self.bits), 1e-9)
        rounded = kernel + tf.stop_gradient(tf.round(kernel / scales) * scales - kernel)
        return (rounded if gain is None else rounded / gain), scales

    def _constant_kernel(self, integers: np.ndarray, scales: np.ndarray) -> tf.Tensor:
        """The kernel as the converter must see it: constants under an operator that tells their grid."""
        bits, shape = self._stored, integers.shape
        limit = largest_integer(bits)
        kernel = (integers * scales).astype("float32")
        if self._gain_first:
            end = float(scales.max()) * limit
            kernel = with_height(kernel, self.layer)
            return tf.quantization.fake_quant_with_min_max_vars(kernel, -end, end, bits, narrow_range=True)
        ends = (np.broadcast_to(scales, self._channels).ravel() * limit).astype("float32")
        # The operator takes the last axis as channels; a depthwise kernel has two axes of them.
        flat = kernel.reshape(*shape[:-2], 1, -1) if isinstance(self.layer, DEPTHWISE) else kernel
        rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            with_height(flat, self.layer), -ends, ends, num_bits=bits, narrow_range=True
        )
        return tf.reshape(rounded, with_height(kernel, self.layer).shape)


def has_one_scale(layer: keras.layers.Layer) -> bool:
    """Whether the file has one scale for the whole kernel; the converter refuses more ("mismatched quantized axes").

    >>> has_one_scale(layers.Dense(1)), has_one_scale(layers.Conv2D(1, 1))
    (True, False)
    """
    return isinstance(layer, (layers.Dense, *TRANSPOSED))
