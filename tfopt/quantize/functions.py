"""Activation functions in operators that LiteRT has for integers, with a rounding of every inner result."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Rounding = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Function:
    """How an activation is computed.

    Args:
      compute: of a tensor on a grid, a rounding for each inner result, and the activation's options.
      inner: from the options to the arguments of the `FakeQuant` of each inner result.
      output: from the options to the arguments of the `FakeQuant` behind it.
    """

    compute: Callable[..., tf.Tensor]
    inner: Callable[..., Sequence[Mapping[str, Any]]] = lambda **_: ()
    output: Callable[..., Mapping[str, Any]] = lambda **_: {}


# What LiteRT's kernels for these give always, whatever they get.
_UNIT = {"fixed": (0.0, 255 / 256)}
_TANH = {"fixed": (-1.0, 127 / 128)}
_LOG_SOFTMAX = {"fixed": (-255 / 16, 0.0)}
_POSITIVE = {"clip": (0.0, None)}
_FREE: Mapping[str, Any] = {}


def _positive(x: tf.Tensor) -> tf.Tensor:
    """A ReLU of a tensor on a grid.

    The converter would make a plain ReLU part of the dense layer or convolution before it, past the rounding between
    them, and write that layer twice where something else reads it too.
    """
    return tf.nn.leaky_relu(x, 0.0)


def _relu(x: tf.Tensor, inner: Sequence[Rounding], negative_slope: float, threshold: float, max_value: Any) -> Any:
    """What rounds the result cuts it at `max_value`."""
    if threshold == 0.0:
        return tf.nn.leaky_relu(x, negative_slope)
    below = inner[1](inner[0](x - threshold) * negative_slope) if negative_slope else tf.constant(0.0)
    return tf.where(x > threshold, x, below)


def _limit(x: tf.Tensor, _: Sequence[Rounding], low: float | None, high: float | None) -> tf.Tensor:
    x = x if low is None else tf.maximum(x, low)
    return x if high is None else tf.minimum(x, high)


def _elu(x: tf.Tensor, inner: Sequence[Rounding], alpha: float, scale: float) -> tf.Tensor:
    """There is no integer kernel for it; exp(x) is cut at 1 by what rounds it."""
    positive, power, shifted, negative = inner
    above = positive(_positive(x) if scale == 1.0 else tf.nn.relu(x * scale))
    below = shifted(power(tf.exp(x)) - 1.0)
    return above + (below if alpha * scale == 1.0 else negative(below * (alpha * scale)))


def _elu_inner(alpha: float, scale: float) -> Sequence[Mapping[str, Any]]:
    return (
        _POSITIVE,
        {"fixed": (0.0, 1.0), "clip": (None, 1.0)},
        {"fixed": (-1.0, 0.0)},
        {"fixed": (-alpha * scale, 0.0)},
    )


def _gelu(x: tf.Tensor, _: Sequence[Rounding], approximate: bool) -> tf.Tensor:
    """In the forms that the converter knows; tf.nn.gelu has erfc(-x), and -x may be shared with something else."""
    return tf.nn.gelu(x, approximate) if approximate else 0.5 * x * (1.0 + tf.math.erf(x * np.sqrt(0.5)))


def _softplus(x: tf.Tensor, inner: Sequence[Rounding]) -> tf.Tensor:
    """log(1 + exp(x)) = relu(x) - log(sigmoid(|x|)): no term is larger than the result."""
    absolute, sigmoid, logarithm, positive = inner
    return positive(_positive(x)) - logarithm(tf.math.log(sigmoid(tf.sigmoid(absolute(tf.abs(x))))))


_SOFTPLUS_INNER = (_POSITIVE, _UNIT, {"fixed": (-0.7, 0.0)}, _POSITIVE)


def _softsign(x: tf.Tensor, inner: Sequence[Rounding]) -> tf.Tensor:
    """There is no integer kernel for divisions, but one for 1 / sqrt."""
    absolute, shifted, root, half = inner
    reciprocal_root = root(tf.math.rsqrt(shifted(absolute(tf.abs(x)) + 1.0)))
    return half(x * reciprocal_root) * reciprocal_root


FUNCTIONS: dict[str, Function] = {
    "sigmoid": Function(lambda x, _: tf.sigmoid(x), output=lambda: _UNIT),
    "tanh": Function(lambda x, _: tf.tanh(x), output=lambda: _TANH),
    "softmax": Function(lambda x, _, axis=-1: tf.nn.softmax(x, axis), output=lambda axis=-1: _UNIT),
    "log_softmax": Function(lambda x, _, axis=-1: tf.nn.log_softmax(x, axis), output=lambda axis=-1: _LOG_SOFTMAX),
    "relu": Function(
        _relu,
        inner=lambda negative_slope, threshold, **_: [_FREE, _FREE] if negative_slope and threshold else [],
        output=lambda max_value, **_: {"clip": (None, max_value)},
    ),
    "limit": Function(_limit),
    "elu": Function(_elu, inner=_elu_inner),
    "gelu": Function(_gelu),
    "silu": Function(lambda x, inner: x * inner[0](tf.sigmoid(x)), inner=lambda: [_UNIT]),
    # The converter finds its HARD_SWISH in this form.
    "hard_silu": Function(lambda x, _: x * tf.nn.relu6(x + 3.0) * (1 / 6)),
    # There is no HARD_SWISH of 16 bits, so the converter must not find one; rounding cuts at 6.
    "hard_silu_in_parts": Function(
        lambda x, inner: inner[0](x * (1 / 6)) * inner[1](tf.nn.relu(x + 3.0)),
        inner=lambda: [_FREE, {"fixed": (0.0, 6.0)}],
    ),
    "hard_sigmoid": Function(
        # The same inner sum and ReLU as above, which the converter shares; rounding cuts at 6.
        lambda x, inner: inner[0](tf.nn.relu(x + 3.0)) * (1 / 6),
        inner=lambda: [{"fixed": (0.0, 6.0)}],
        output=lambda: {"fixed": (0.0, 1.0)},
    ),
    "softplus": Function(_softplus, inner=lambda: _SOFTPLUS_INNER, output=lambda: _POSITIVE),
    "mish": Function(
        lambda x, inner: x * inner[5](tf.tanh(inner[4](_softplus(x, inner[:4])))),
        inner=lambda: (*_SOFTPLUS_INNER, _POSITIVE, _TANH),
    ),
    "softsign": Function(
        _softsign,
        inner=lambda: (_POSITIVE, _POSITIVE, {"fixed": (0.0, 1.0)}, _FREE),
        output=lambda: _TANH,
    ),
    "exponential": Function(lambda x, _: tf.exp(x), output=lambda: _POSITIVE),
    "absolute": Function(lambda x, _: tf.abs(x), output=lambda: _POSITIVE),
    "negative": Function(lambda x, _: x * -1.0),
    "l2_normalization": Function(lambda x, _: tf.nn.l2_normalize(x, -1), output=lambda: _TANH),
    "square": Function(lambda x, _: x * x, output=lambda: _POSITIVE),
}
