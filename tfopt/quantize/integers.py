"""The arithmetic of integer quantization, in NumPy: real = scale * (integer - zero_point)."""

from collections.abc import Sequence

import numpy as np

# LiteRT keeps a bias as int32 in steps of input scale * weight scale; these are at least this part of it, which
# spares a bit.
SMALLEST_BIAS_STEP = 2.0**-30
# Below this a scale would vanish in float32 products.
_SMALLEST_SCALE = 1e-9


def largest_integer(bits: int) -> int:
    """The largest integer of symmetric, narrow-range weights: 127 for 8 bits, 7 for 4.

    >>> largest_integer(4)
    7
    """
    return 2 ** (bits - 1) - 1


def stored_bits(bits: int, packed: bool) -> int:
    """The bits of the integers that the file holds weights in: 4 where these are packed, otherwise 8.

    >>> stored_bits(4, packed=True), stored_bits(4, packed=False), stored_bits(5, packed=True)
    (4, 8, 8)
    """
    return 4 if bits == 4 and packed else 8


def weight_scales(kernel: np.ndarray, axes: Sequence[int], bits: int) -> np.ndarray:
    """The scales at which the largest weight becomes the largest integer.

    Args:
      kernel: float array.
      axes: the axes that share a scale; they stay as 1 in the result's shape.
      bits: of the integers.

    Source: Jacob et al., Quantization and Training of Neural Networks, 2018, arXiv:1712.05877, equation 12.

    >>> weight_scales(np.array([[2.54, 0.0], [-1.0, 1.27]]), [0], 8)
    array([[0.02, 0.01]])
    """
    largest = np.abs(kernel).max(axis=tuple(axes), keepdims=True)
    return np.maximum(largest / largest_integer(bits), _SMALLEST_SCALE)


def to_integers(kernel: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The nearest integers, ties to even as in training, within the narrow range; zero stays zero.

    >>> to_integers(np.array([0.0, 0.024, -9.0]), np.array(0.01), 8)
    array([   0.,    2., -127.])
    """
    limit = largest_integer(bits)
    return np.clip(np.round(kernel / scales), -limit, limit) + 0.0


def scales_that_hold(scales: np.ndarray, bias: np.ndarray, input_scale: float | None) -> np.ndarray:
    """Weight scales raised where the bias would not fit into int32.

    A channel whose weights are nearly zero (a BatchNorm with gamma near 0) has a tiny scale, and its bias in steps
    of `input_scale * scale` overflows.

    Args:
      scales: of the weights, of a shape that broadcasts with `bias`.
      bias: real values.
      input_scale: step of the layer's input, above 0; None where the input is float.

    >>> scales_that_hold(np.array([1e-9, 0.5]), np.array([1.0, 1.0]), 0.01).round(9)
    array([9.3e-08, 5.0e-01])
    """
    if input_scale is None:
        return scales
    return np.maximum(scales, np.abs(bias) * SMALLEST_BIAS_STEP / input_scale)


def uneven(bias: np.ndarray) -> np.ndarray:
    """A bias in float32 whose values are not all equal: one is moved by its last bit.

    LiteRT's converter makes the same integer of equal values, though each channel has a step of its own.

    >>> uneven(np.array([-1.0, -1.0]))
    array([-0.99999994, -1.        ], dtype=float32)
    """
    result = bias.astype("float32")
    if result.size > 1 and np.all(result == result.flat[0]):
        result.flat[0] = np.nextafter(result.flat[0], np.float32(0.0))
    return result


def rounding_excess(ratio: np.ndarray) -> np.ndarray:
    """What LiteRT's built-in kernels add to a sum on average, in steps of the sum.

    They bring a sum to the output's scale in two roundings, halves up both times: 2^-(s+1) steps of the output too
    much, for s the second one's shift. With 8-bit weights that is a few thousandths; with 4-bit weights, whose sums
    have steps 18 times as large, it adds up from layer to layer.

    Args:
      ratio: step of the sum over step of the output, above 0.

    Source: Jacob et al., 2018, arXiv:1712.05877, appendix B, and gemmlowp's `RoundingDivideByPOT`.

    >>> rounding_excess(np.array([0.5, 0.75, 0.09375]))
    array([1.        , 0.66666667, 0.66666667])
    """
    fraction, _ = np.frexp(ratio)
    return 0.5 / fraction


def nudged_range(low: float, high: float, bits: int = 8) -> tuple[float, float]:
    """The range that is really used: it holds 0 exactly, on the grid of integers.

    Args:
      low: lowest value, at most `high`.
      high: highest value.
      bits: 8: asymmetric, -128 to 127. 16: symmetric, -32767 to 32767.

    Source: Jacob et al., 2018, arXiv:1712.05877, section 3.1.

    >>> nudged_range(-0.7, 254.3)
    (-1.0, 254.0)
    >>> nudged_range(-2.0, 1.0, bits=16)
    (-2.0, 2.0)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if bits == 16:
        largest = max(-low, high)
        return -largest, largest
    # In float32, as TensorFlow's operator: in a symmetric range the zero point is a tie.
    start, scale = np.float32(low), (np.float32(high) - np.float32(low)) / np.float32(255.0)
    zero_point = np.floor(-start / scale + np.float32(0.5))
    return float(-zero_point * scale), float((np.float32(255.0) - zero_point) * scale)


def range_scale(low: float, high: float, bits: int = 8) -> float:
    """The step of a range: the difference between neighbouring integers.

    >>> range_scale(0.0, 255.0)
    1.0
    """
    return max(-low, high) / 32767.0 if bits == 16 else (high - low) / 255.0
