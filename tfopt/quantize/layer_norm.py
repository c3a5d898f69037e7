"""`QuantizedNorm`: layer normalization with integers, whatever the size of what it normalizes."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.graph import Node
from tfopt.quantize.activations import activation
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.functions import FUNCTIONS
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported
from tfopt.quantize.rules_elementwise import activate
from tfopt.quantize.scale import integer_channels, multiply_channels

# Inner results with 16 bits.
_BY_VARIANCE = (
    *("centered", "square", "variance", "shifted", "inverse"),
    *("root", "one", "correction", "exact", "normal"),
)
_RANGES = {
    "unit": FUNCTIONS["l2_normalization"].output(),
    # 1 in the model; in the file whatever the kernel of 1 / sqrt leaves.
    "one": {"fixed": (0.0, 2.0)},
    "correction": {"fixed": (0.0, 2.0)},
}


@keras.saving.register_keras_serializable("tfopt")
class QuantizedNorm(QuantizedLayer):
    """LayerNormalization or RMSNormalization over the last axis.

    With 8 bits, no integer tensor holds a variance, which they resolve for rows of about one size only. The file
    divides each row by its length with L2_NORMALIZATION instead, which sums squares in 32 bits and so gives rows of
    every size the same resolution: `sqrt(channels) / 128` standard deviations. An additional channel of
    `sqrt(channels * epsilon)` adds epsilon to the variance, where the grid of the inputs can tell it from 0. With 16
    bits, for which there is no such operator, it is computed as it is defined. Gamma and beta are a depthwise
    convolution.

    Args:
      layer: the layer.
      bits: of inner results, 8 or 16.

    Source: Ba et al., Layer Normalization, 2016, arXiv:1607.06450; Zhang and Sennrich, Root Mean Square Layer
    Normalization, 2019, arXiv:1910.07467.

    >>> layer = QuantizedNorm(layers.LayerNormalization(epsilon=1e-6))
    >>> layer(np.float32([[10.0, 10.0, 30.0, 30.0], [0.1, 0.3, 0.3, 0.1]])).numpy().round(2)
    array([[-1., -1.,  1.,  1.],
           [-1.,  1.,  1., -1.]], dtype=float32)
    """

    def __init__(self, layer: Any, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer, self.bits = layer, bits
        names = ["mean"] if isinstance(layer, layers.LayerNormalization) else []
        names += _BY_VARIANCE if bits == 16 else ["centered", "unit"]
        self.quantizers = {name: FakeQuant(bits=bits, name=name, **_RANGES.get(name, {})) for name in names}
        self.frozen: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def build(self, input_shape: Any) -> None:
        """Builds the layer and the quantizers inside."""
        self.channels = input_shape[-1]
        if not self.layer.built:
            self.layer.build(input_shape)
        for quantizer in self.quantizers.values():
            quantizer.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The layer, every inner result rounded."""
        if "mean" in self.quantizers:
            inputs = inputs - self._rounded("mean", _mean(inputs), training)
        normal = self._by_variance(inputs, training) if self.bits == 16 else self._by_length(inputs, training)
        if self.frozen is not None:
            return multiply_channels(normal, *self.frozen)
        gamma, beta = self._gamma_and_beta()
        return normal * gamma + beta

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer), "bits": self.bits}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedNorm":
        """From what `get_config` gave."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes with constants from here on, as the file will."""
        super().freeze(input_scale, output_scale)
        gamma, beta = (
            keras.ops.convert_to_numpy(each) * np.ones(self.channels, "float32") for each in self._gamma_and_beta()
        )
        normal = self.quantizers["normal" if self.bits == 16 else "unit"]
        self.frozen = integer_channels(gamma, beta, normal.scale)

    def thaw(self) -> None:
        """Computes with its variables again."""
        super().thaw()
        self.frozen = None

    def _rounded(self, name: str, values: tf.Tensor, training: bool) -> tf.Tensor:
        return self.quantizers[name](values, training=training)

    def _by_length(self, centered: tf.Tensor, training: bool) -> tf.Tensor:
        """The rows divided by their length; gamma makes up for the factor of `sqrt(channels)`."""
        on_grid, length = self.quantizers["centered"], math.sqrt(self.channels * self.layer.epsilon)
        widths = [[0, 0]] * (len(centered.shape) - 1) + [[0, 1]]
        if on_grid.frozen is None:
            extended = on_grid(tf.pad(centered, widths, constant_values=length), training=training)
        else:
            extended = on_grid(centered)
            if round(length / on_grid.scale):
                extended = on_grid(tf.pad(extended, widths, constant_values=length))
        unit = self._rounded("unit", tf.nn.l2_normalize(extended, -1), training)
        return unit if unit.shape[-1] == self.channels else unit[..., : self.channels]

    def _by_variance(self, centered: tf.Tensor, training: bool) -> tf.Tensor:
        """The rows divided by their standard deviation; the kernel of 1 / sqrt needs at least one step."""
        centered = self._rounded("centered", centered, training)
        variance = self._rounded("variance", _mean(self._rounded("square", centered * centered, training)), training)
        on_grid = self.quantizers["variance"]
        step = tf.stop_gradient(on_grid.live_scale()) if on_grid.frozen is None else on_grid.scale
        shifted = self._rounded("shifted", variance + tf.maximum(step, self.layer.epsilon), training)
        inverse = self._rounded("inverse", tf.math.rsqrt(shifted), training)
        # The kernel interpolates in a table, coarsely where its input is small: how far off it is gets divided out.
        one = self._rounded("one", self._rounded("root", shifted * inverse, training) * inverse, training)
        inverse = self._rounded("exact", inverse * self._rounded("correction", tf.math.rsqrt(one), training), training)
        return self._rounded("normal", centered * inverse, training)

    def _gamma_and_beta(self) -> tuple[Any, Any]:
        """What the normal rows are multiplied by, and what is added."""
        if isinstance(self.layer, layers.RMSNormalization):
            gamma, beta = self.layer.scale, None
        else:
            gamma, beta = self.layer.gamma, self.layer.beta
        gain = 1.0 if self.bits == 16 else math.sqrt(self.channels)
        return gain if gamma is None else gamma * gain, 0.0 if beta is None else beta


def _mean(inputs: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(inputs, -1, keepdims=True)


def norm(rewrite: Rewrite, node: Node) -> None:
    """LayerNormalization and RMSNormalization."""
    layer = node.operation
    _check(node)
    if getattr(layer, "rms_scaling", False):
        raise Unsupported("rms_scaling=True is deprecated in Keras: use RMSNormalization")
    made = rewrite.once(
        (id(layer), "norm"),
        lambda: QuantizedNorm(rewrite.copy(layer), rewrite.activation_bits, name=rewrite.unique(node.name)),
    )
    rewrite.put(node.outputs[0], made(rewrite.quantized(node.inputs[0])))


def unit_norm(rewrite: Rewrite, node: Node) -> None:
    """UnitNormalization."""
    _check(node)
    if rewrite.activation_bits == 16:
        raise Unsupported("LiteRT normalizes to unit length with 8 bits only: use activation_bits=8")
    activate(rewrite, node.outputs[0], rewrite.quantized(node.inputs[0]), activation("l2_normalization"), node.name)


def _check(node: Node) -> None:
    """Raises where it normalizes over other axes than the last."""
    axis, rank = node.operation.axis, len(node.outputs[0].shape)
    axes = [each % rank for each in (axis if isinstance(axis, list | tuple) else [axis])]
    if axes != [rank - 1]:
        raise Unsupported(f"it normalizes over the axes {axes}; integer kernels do so over the last one alone")


def group_norm(rewrite: Rewrite, node: Node) -> None:
    """GroupNormalization, which has no rule."""
    raise Unsupported(
        "GroupNormalization takes its statistics over all positions of an image, too many values for an 8-bit "
        "normalization: use BatchNormalization, or LayerNormalization over the channels"
    )


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    ((layers.LayerNormalization, layers.RMSNormalization), norm),
    ((layers.UnitNormalization,), unit_norm),
    ((layers.GroupNormalization,), group_norm),
]
