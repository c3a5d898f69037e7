"""A matrix of integer weights under one scale, as LiteRT's fully connected operator multiplies by it."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.quantize.integers import (
    largest_integer,
    rounding_excess,
    scales_that_hold,
    stored_bits,
    to_integers,
    weight_scales,
)


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerMatrix:
    """Weights and bias as the file will hold them.

    Args:
      values: integers times their scale, float32 of shape (inputs, outputs).
      end: the value of the largest integer, above 0.
      bits: of the integers in the file, 4 or 8.
      bias: shape (outputs,), or None.
    """

    values: np.ndarray
    end: float
    bits: int
    bias: np.ndarray | None

    @property
    def kernel(self) -> tf.Tensor:
        """A constant under an operator that tells the converter its grid.

        It stands there transposed, as in the file: the converter turns round what is multiplied by once, and of what
        is used again it would lose the grid.
        """
        rounded = tf.quantization.fake_quant_with_min_max_vars(
            self.values.T, -self.end, self.end, self.bits, narrow_range=True
        )
        return tf.transpose(rounded)


def integer_matrix(
    kernel: Any,
    bias: Any,
    bits: int,
    input_scale: float | None,
    output_scale: float | None,
    packed: bool = True,
) -> IntegerMatrix:
    """The matrix that the file will hold for a trained kernel.

    Args:
      kernel: shape (inputs, outputs).
      bias: shape (outputs,), or None.
      bits: of the weights, 2 to 8.
      input_scale: step of what is multiplied, above 0; None where that is float.
      output_scale: step of what the sum is rounded to, above 0; None where that is not known.
      packed: whether the file holds 4 bits as such, and not in int8.

    >>> integer_matrix(np.array([[0.7], [0.33]]), None, 4, 0.01, 0.1).values.round(6).tolist()
    [[0.699999988079071], [0.30000001192092896]]
    """
    kernel, bias = np.asarray(kernel), None if bias is None else np.asarray(bias)
    wanted = np.zeros(()) if bias is None else np.abs(bias).max()
    scale = scales_that_hold(weight_scales(kernel, (0, 1), bits), wanted, input_scale)
    stored = stored_bits(bits, packed)
    if stored == 4 and input_scale is not None and output_scale is not None:
        step = input_scale * scale.ravel()
        bias = (0.0 if bias is None else bias) - step * rounding_excess(step / output_scale) * np.ones(kernel.shape[1])
    return IntegerMatrix(
        (to_integers(kernel, scale, bits) * scale).astype("float32"),
        float(scale.max()) * largest_integer(stored),
        stored,
        None if bias is None else bias.astype("float32"),
    )


def rounded_matrix(kernel: Any, bits: int) -> tf.Tensor:
    """The kernel on the grid of its integers; the gradient passes as if it were not rounded."""
    kernel = tf.convert_to_tensor(kernel)
    scale = tf.maximum(tf.reduce_max(tf.abs(kernel)) / largest_integer(bits), 1e-9)
    return kernel + tf.stop_gradient(tf.round(kernel / scale) * scale - kernel)


def multiply(inputs: tf.Tensor, kernel: Any, bias: Any) -> tf.Tensor:
    """`inputs @ kernel + bias` over the last axis, as one product; a bias of None is left out."""
    if len(inputs.shape) == 2:
        outputs = tf.matmul(inputs, kernel)
    else:
        flat = tf.matmul(tf.reshape(inputs, (-1, inputs.shape[-1])), kernel)
        outputs = tf.reshape(flat, (-1, *sizes(inputs)[1:-1], kernel.shape[-1]))
    return outputs if bias is None else outputs + bias


def sizes(tensor: tf.Tensor) -> list[Any]:
    """The tensor's shape, as numbers where they are known."""
    dynamic = tf.shape(tensor)
    return [dynamic[i] if size is None else size for i, size in enumerate(tensor.shape)]
