"""Activation functions, recognised in whatever form Keras has them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation function in one form, whether it was a layer, a layer's argument or a raw operator.

    Args:
      kind: "linear"; "clip": cut at `low` and `high`; "limit": likewise, for ends that 0 is not between; or a key of
        `functions.FUNCTIONS`.
      options: its parameters, as (name, value) pairs.
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, name: str) -> Any:
        return dict(self.options)[name]


LINEAR = Activation("linear")


def activation(kind: str, **options: Any) -> Activation:
    """An activation with options.

    >>> activation("leaky_relu", negative_slope=0.1)["negative_slope"]
    0.1
    """
    return Activation(kind, tuple(options.items()))


def clip(low: float | None, high: float | None) -> Activation:
    """Values are cut at `low` and `high`: a ReLU of any kind, or a limit that rounding cannot do on its own.

    >>> clip(0, None).kind, clip(1.0, 2.0).kind
    ('clip', 'limit')
    """
    low, high = (None if end is None else float(end) for end in (low, high))
    holds_zero = (low is None or low <= 0.0) and (high is None or high >= 0.0)
    return activation("clip" if holds_zero else "limit", low=low, high=high)


def _relu(operation: Any) -> Activation:
    slope, threshold, high = operation.negative_slope, operation.threshold, operation.max_value
    if not slope and not threshold:
        return clip(0.0, high)
    return activation(
        "relu",
        negative_slope=float(slope),
        threshold=float(threshold),
        max_value=None if high is None else float(high),
    )


def _leaky(operation: Any) -> Activation:
    return activation("relu", negative_slope=float(operation.negative_slope), threshold=0.0, max_value=None)


def _elu(operation: Any) -> Activation:
    return activation("elu", alpha=float(operation.alpha), scale=1.0)


def _over_axis(kind: str) -> Callable[[Any], Activation | None]:
    def make(operation: Any) -> Activation | None:
        axis = operation.axis
        if isinstance(axis, list | tuple):
            axis = axis[0] if len(axis) == 1 else None
        return None if axis is None else activation(kind, axis=int(axis))

    return make


def _clip(operation: Any) -> Activation | None:
    is_scalar = np.ndim(operation.x_min) == 0 and np.ndim(operation.x_max) == 0
    return clip(operation.x_min, operation.x_max) if is_scalar else None


# By the names of Keras' layers and raw operators; the latter have no public classes.
_BY_NAME: dict[str, Activation | Callable[[Any], Activation | None]] = {
    "ReLU": _relu,
    "Relu": clip(0.0, None),
    "Relu6": clip(0.0, 6.0),
    "LeakyReLU": _leaky,
    "LeakyRelu": _leaky,
    "HardTanh": clip(-1.0, 1.0),
    "Clip": _clip,
    "Softmax": _over_axis("softmax"),
    "LogSoftmax": _over_axis("log_softmax"),
    "ELU": _elu,
    "Elu": _elu,
    "Celu": lambda operation: _elu(operation) if operation.alpha == 1.0 else None,
    "Selu": activation("elu", alpha=1.6732632423543772, scale=1.0507009873554805),
    "Gelu": lambda operation: activation("gelu", approximate=bool(operation.approximate)),
    "Sigmoid": activation("sigmoid"),
    "Tanh": activation("tanh"),
    "Silu": activation("silu"),
    "HardSilu": activation("hard_silu"),
    "HardSigmoid": activation("hard_sigmoid"),
    "Softplus": activation("softplus"),
    "Softsign": activation("softsign"),
    "Mish": activation("mish"),
    "Exp": activation("exponential"),
    "Abs": activation("absolute"),
    "Absolute": activation("absolute"),
    "Negative": activation("negative"),
    "Square": activation("square"),
}

# Those that cannot be called with a symbolic tensor.
_BY_FUNCTION = {
    keras.activations.mish: activation("mish"),
    keras.activations.hard_silu: activation("hard_silu"),
    tf.nn.relu: clip(0.0, None),
    tf.nn.relu6: clip(0.0, 6.0),
    tf.nn.sigmoid: activation("sigmoid"),
    tf.nn.tanh: activation("tanh"),
}


def is_keras(operation: keras.Operation) -> bool:
    """Whether an operation is Keras' own, so that its class's name tells what it does."""
    return type(operation).__module__.partition(".")[0] == "keras"


def activation_of(operation: keras.Operation) -> Activation | None:
    """The activation that an operation is; None where it is something else.

    >>> activation_of(layers.ReLU(max_value=6))
    Activation(kind='clip', options=(('low', 0.0), ('high', 6.0)))
    """
    if isinstance(operation, layers.Activation):
        return by_function(operation.activation)
    found = _BY_NAME.get(type(operation).__name__) if is_keras(operation) else None
    return found(operation) if callable(found) else found


def by_function(function: Any) -> Activation | None:
    """The activation that a layer's argument `activation` is; None where there is no integer rule for it.

    >>> by_function(lambda x: keras.activations.relu(x, max_value=1))
    Activation(kind='clip', options=(('low', 0.0), ('high', 1.0)))
    """
    if function is None:
        return LINEAR
    if function in _BY_FUNCTION:
        return _BY_FUNCTION[function]
    if isinstance(function, layers.Layer):
        return activation_of(function)
    given = keras.KerasTensor((2, 2))
    try:
        result = function(given)
    except (AttributeError, NotImplementedError, TypeError, ValueError):  # TensorFlow's functions want no symbols
        return None
    if result is given:
        return LINEAR
    node = result._keras_history.operation._inbound_nodes[0]
    return activation_of(node.operation) if node.input_tensors == [given] else None
