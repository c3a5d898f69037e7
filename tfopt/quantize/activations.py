"""Activation functions: recognised in whatever form Keras has them, and computed with integers."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfopt.quantize.layer import QuantizedLayer


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation function in one form, whether it was a layer, a layer's argument or a raw operator.

    Args:
      kind: "linear", "clip", or a key of `FUNCTIONS`.
      options: its parameters, as (name, value) pairs.
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, name: str) -> Any:
        return dict(self.options)[name]


LINEAR = Activation("linear")

# What the kernels of these give always, whatever they get.
FIXED_RANGES = {"sigmoid": (0.0, 255 / 256), "softmax": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}

FUNCTIONS = {
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "softmax": lambda x: tf.nn.softmax(x),
}


def clip(low: float | None, high: float | None) -> Activation:
    """A ReLU of any kind: values are cut at `low` and `high`."""
    ends = (None if end is None else float(end) for end in (low, high))
    return Activation("clip", tuple(zip(("low", "high"), ends, strict=True)))


_RELU, _RELU6 = clip(0.0, None), clip(0.0, 6.0)
_BY_FUNCTION = {"linear": LINEAR, "relu": _RELU, "relu6": _RELU6} | {kind: Activation(kind) for kind in FUNCTIONS}
# Raw operators by their class.
_BY_OPERATOR = {"Relu": _RELU, "Relu6": _RELU6, "Sigmoid": Activation("sigmoid"), "Tanh": Activation("tanh")}


def activation_of(operation: keras.Operation) -> Activation | None:
    """The activation that an operation is; None where it is something else.

    >>> activation_of(layers.ReLU(max_value=6))
    Activation(kind='clip', options=(('low', 0.0), ('high', 6.0)))
    """
    if isinstance(operation, layers.ReLU):
        plain = not operation.negative_slope and not operation.threshold
        return clip(0.0, operation.max_value) if plain else None
    if isinstance(operation, layers.Softmax):
        return Activation("softmax") if operation.axis == -1 else None
    if isinstance(operation, layers.Activation):
        return by_function(operation.activation)
    return None if isinstance(operation, layers.Layer) else _BY_OPERATOR.get(type(operation).__name__)


def by_function(function: Any) -> Activation | None:
    """The activation that a layer's argument `activation` names; None where there is no integer rule for it."""
    return LINEAR if function is None else _BY_FUNCTION.get(getattr(function, "__name__", ""))


@keras.saving.register_keras_serializable("tfopt")
class QuantizedActivation(QuantizedLayer):
    """An activation function other than a ReLU, of a tensor on a grid; what follows rounds its result.

    Args:
      kind: a key of `FUNCTIONS`.
      bits: of inner results.
    """

    def __init__(self, kind: str, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.bits = kind, bits

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The function."""
        return FUNCTIONS[self.kind](inputs)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "kind": self.kind, "bits": self.bits}
