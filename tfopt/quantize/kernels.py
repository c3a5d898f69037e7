"""What LiteRT's built-in kernels do to a sum beyond exact arithmetic, for a model that predicts as they do."""

import tensorflow as tf

# A tie is broken by this part of a step, which no other value is near to.
_TIE = 1e-3


def round_twice(sums: tf.Tensor, bias: tf.Tensor, step: tf.Tensor, output_step: tf.Tensor) -> tf.Tensor:
    """Adds a bias, and rounds as the kernels do when they bring a sum to the scale of the output.

    They multiply by a fraction in [1/2, 1) and round, then divide by a power of two and round again, halves away from
    zero both times. With packed 4-bit weights, whose sums have coarse steps, the first rounding shows; and only these
    kernels run them, as XNNPACK leaves them alone. The bias is lowered by what this adds on average, as in the file.

    Args:
      sums: float32, shape (..., channels).
      bias: shape (channels,).
      step: of the sums, shape (channels,) or (1,), above 0.
      output_step: of the output, above 0.

    Returns:
      Values that the second rounding, to whole steps of the output, brings to what the kernels give.

    Source: Jacob et al., 2018, arXiv:1712.05877, appendix B; gemmlowp's `SaturatingRoundingDoublingHighMul` and
    `RoundingDivideByPOT`.

    >>> round_twice(tf.constant([0.47, -0.47]), tf.zeros(2), tf.constant([0.0625]), tf.constant(1.0)).numpy()
    array([ 0.376, -0.501], dtype=float32)
    """
    # The sum's step is fraction * unit, with the fraction in [1/2, 1).
    unit = output_step * tf.pow(2.0, tf.floor(tf.math.log(step / output_step) / tf.math.log(2.0)) + 1.0)
    bias = tf.round(bias / step - 0.5 * unit / step) * step
    sums = sums + bias
    once = tf.sign(sums) * tf.floor(tf.abs(sums) / unit + 0.5) * unit
    # The rounding to come takes halves up, or down where a float falls short of one.
    return once + tf.sign(once) * _TIE * output_step


def halves_away_from_zero(values: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Values that a rounding to come rounds as AVERAGE_POOL_2D does: away from the integer 0.

    Every fourth average of four integers is a half, and most integers behind a ReLU are below 0.

    Args:
      values: averages of values on the grid.
      low: the least value of the grid of 8 bits.
      high: the largest, above `low`.

    >>> halves_away_from_zero(tf.constant([2.5, 200.5]), tf.constant(0.0), tf.constant(255.0)).numpy()
    array([  2.499, 200.501], dtype=float32)
    """
    step = (high - low) / 255.0
    # The real value of the integer 0, of those from -128 to 127.
    middle = (128.0 - tf.floor(-low / step + 0.5)) * step
    tie = _TIE * step
    return values + tf.where(values < middle, -tie, tie)
