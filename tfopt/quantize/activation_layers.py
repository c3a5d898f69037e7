"""`QuantizedActivation`, `QuantizedPReLU`: activation functions other than a ReLU, with integers."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.functions import FUNCTIONS
from tfopt.quantize.integers import largest_integer
from tfopt.quantize.layer import QuantizedLayer


@keras.saving.register_keras_serializable("tfopt")
class QuantizedActivation(QuantizedLayer):
    """An activation function of a tensor on a grid, every inner result rounded; what follows rounds its result.

    Args:
      kind: a key of `functions.FUNCTIONS`.
      options: the function's.
      bits: of inner results.

    >>> QuantizedActivation("hard_sigmoid")(np.float32([-3.0, 0.0, 3.0])).numpy().round(2)
    array([0. , 0.5, 1. ], dtype=float32)
    """

    def __init__(self, kind: str, options: dict[str, Any] | None = None, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.options, self.bits = kind, dict(options or {}), bits
        specs = FUNCTIONS[kind].inner(**self.options)
        self.quantizers = [FakeQuant(bits=bits, name=f"inner_{i}", **spec) for i, spec in enumerate(specs)]

    def build(self, input_shape: Any) -> None:
        """Builds the quantizers of inner results."""
        for quantizer in self.quantizers:
            quantizer.build(input_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The function."""
        inner = [lambda x, each=each: each(x, training=training) for each in self.quantizers]
        return FUNCTIONS[self.kind].compute(inputs, inner, **self.options)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "kind": self.kind, "options": self.options, "bits": self.bits}


@keras.saving.register_keras_serializable("tfopt")
class QuantizedPReLU(QuantizedLayer):
    """A PReLU whose slopes are integers of 8 bits under one scale, of a tensor on a grid.

    Args:
      layer: the PReLU.

    Source: He et al., 2015, arXiv:1502.01852.

    >>> layer = QuantizedPReLU(layers.PReLU(alpha_initializer="ones"))
    >>> layer(np.float32([[-2.0, 2.0]])).numpy()
    array([[-2.,  2.]], dtype=float32)
    """

    def __init__(self, layer: layers.PReLU, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.frozen: np.ndarray | None = None

    def build(self, input_shape: Any) -> None:
        """Builds the layer inside."""
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs: Any) -> Any:
        """The converter finds its PRELU in this form."""
        slopes = self._rounded() if self.frozen is None else self.frozen
        return tf.nn.relu(inputs) + (-slopes) * tf.nn.relu(-inputs)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedPReLU":
        """From what `get_config` gave."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes with constant slopes from here on, as the file will."""
        self.frozen = self._rounded().numpy()

    def thaw(self) -> None:
        """Computes with its variables again."""
        self.frozen = None

    def _rounded(self) -> tf.Tensor:
        """The slopes on their grid; the gradient passes as if they were not rounded."""
        slopes = tf.convert_to_tensor(self.layer.alpha)
        scale = tf.maximum(tf.reduce_max(tf.abs(slopes)) / largest_integer(8), 1e-9)
        return slopes + tf.stop_gradient(tf.round(slopes / scale) * scale - slopes)
