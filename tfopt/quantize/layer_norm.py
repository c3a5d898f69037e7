"""`QuantizedNorm`: layer normalization with integers, whatever the size of what it normalizes."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.quantize.activations import activation
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.functions import FUNCTIONS
from tfopt.quantize.graph import Node
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported
from tfopt.quantize.rules_elementwise import activate
from tfopt.quantize.scale import integer_channels, multiply_channels


@keras.saving.register_keras_serializable("tfopt")
class QuantizedNorm(QuantizedLayer):
    """LayerNormalization or RMSNormalization over the last axis.

    No integer tensor holds a variance: 8 bits resolve it for rows of about one size only. The file divides each row by
    its length with L2_NORMALIZATION instead, which sums squares in 32 bits and so gives rows of every size the same
    resolution: `sqrt(channels) / 128` standard deviations. An additional channel of `sqrt(channels * epsilon)` adds
    epsilon to the variance, where the grid of the inputs can tell it from 0. Gamma, beta and `sqrt(channels)` are a
    depthwise convolution.

    Args:
      layer: the layer.
      bits: of inner results, 8.

    Source: Ba et al., Layer Normalization, 2016, arXiv:1607.06450; Zhang and Sennrich, Root Mean Square Layer
    Normalization, 2019, arXiv:1910.07467.

    >>> layer = QuantizedNorm(layers.LayerNormalization(epsilon=1e-6))
    >>> layer(np.float32([[1.0, 2.0, 3.0, 4.0], [0.01, 0.02, 0.03, 0.04]])).numpy().round(1)
    array([[-1.3, -0.4,  0.4,  1.3],
           [-1.3, -0.4,  0.4,  1.3]], dtype=float32)
    """

    def __init__(self, layer: Any, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer, self.bits = layer, bits
        self.mean = FakeQuant(bits=bits, name="mean") if isinstance(layer, layers.LayerNormalization) else None
        self.centered = FakeQuant(bits=bits, name="centered")
        self.unit = FakeQuant(bits=bits, name="unit", **FUNCTIONS["l2_normalization"].output())
        self.frozen: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def build(self, input_shape: Any) -> None:
        """Builds the layer and the quantizers inside."""
        self.channels = input_shape[-1]
        if not self.layer.built:
            self.layer.build(input_shape)
        for quantizer in self._inner():
            quantizer.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The layer, every inner result rounded."""
        if self.mean is not None:
            inputs = inputs - self.mean(tf.reduce_mean(inputs, -1, keepdims=True), training=training)
        unit = self.unit(tf.nn.l2_normalize(self._with_epsilon(inputs, training), -1))
        if unit.shape[-1] > self.channels:
            unit = unit[..., : self.channels]
        if self.frozen is not None:
            return multiply_channels(unit, *self.frozen)
        gamma, beta = self._gamma_and_beta()
        return unit * gamma * math.sqrt(self.channels) + beta

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
        self.frozen = integer_channels(gamma * math.sqrt(self.channels), beta, self.unit.scale)

    def thaw(self) -> None:
        """Computes with its variables again."""
        super().thaw()
        self.frozen = None

    def _with_epsilon(self, centered: tf.Tensor, training: bool) -> tf.Tensor:
        """The tensor on its grid, and the channel for epsilon."""
        length = math.sqrt(self.channels * self.layer.epsilon)
        widths = [[0, 0]] * (len(centered.shape) - 1) + [[0, 1]]
        if self.frozen is None:
            return self.centered(tf.pad(centered, widths, constant_values=length), training=training)
        centered = self.centered(centered)
        if round(length / self.centered.scale) == 0:
            return centered
        return self.centered(tf.pad(centered, widths, constant_values=length))

    def _gamma_and_beta(self) -> tuple[Any, Any]:
        if isinstance(self.layer, layers.RMSNormalization):
            return self.layer.scale, 0.0
        gamma, beta = (getattr(self.layer, name, None) for name in ("gamma", "beta"))
        return 1.0 if gamma is None else gamma, 0.0 if beta is None else beta


def norm(rewrite: Rewrite, node: Node) -> None:
    """LayerNormalization and RMSNormalization."""
    layer = node.operation
    _check(rewrite, node)
    if getattr(layer, "rms_scaling", False):
        raise Unsupported("rms_scaling=True is deprecated in Keras: use RMSNormalization")
    made = rewrite.once((id(layer), "norm"), lambda: QuantizedNorm(rewrite.copy(layer), name=rewrite.unique(node.name)))
    rewrite.put(node.outputs[0], made(rewrite.quantized(node.inputs[0])))


def unit_norm(rewrite: Rewrite, node: Node) -> None:
    """UnitNormalization."""
    _check(rewrite, node)
    activate(rewrite, node.outputs[0], rewrite.quantized(node.inputs[0]), activation("l2_normalization"), node.name)


def _check(rewrite: Rewrite, node: Node) -> None:
    """Raises where LiteRT's L2_NORMALIZATION, which has integers of 8 bits over the last axis, cannot be used."""
    axis, rank = node.operation.axis, len(node.outputs[0].shape)
    axes = [each % rank for each in (axis if isinstance(axis, list | tuple) else [axis])]
    if axes != [rank - 1]:
        raise Unsupported(f"it normalizes over the axes {axes}; integer kernels do so over the last one alone")
    if rewrite.activation_bits != 8:
        raise Unsupported(f"LiteRT normalizes activations of 8 bits only, not of {rewrite.activation_bits}")


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
