"""`FakeQuant`: rounds a tensor to the integers it will have in the file."""

import math
from typing import Any

import keras
import tensorflow as tf

from tfopt.quantize.integers import nudged_range, range_scale
from tfopt.quantize.kernels import halves_away_from_zero
from tfopt.quantize.layer import QuantizedLayer
from tfopt.tflite.markers import marker_range

# The ranges are a mean over the first 100 batches, and follow slowly from there.
_MOMENTUM = 0.99
# The least width of a range: a tensor that is always zero has a scale too.
_SMALLEST_WIDTH = 1e-5
# A symmetric range is widened by this: else its 0 is half-way between two integers, and so is every value of an image
# in [-1, 1] that was made of 8 bits.
_UNEVEN = 128 / 127
# Ranges that LiteRT's kernels for softmax, sigmoid and tanh give with 8 bits, which are another one with 16.
_WRITTEN_INTO_KERNELS = ((0.0, 255 / 256), (-1.0, 127 / 128))
_LARGEST_OF_16_BITS = 32767 / 32768


@keras.saving.register_keras_serializable("tfopt")
class FakeQuant(QuantizedLayer):
    """Rounds its input to the grid of an integer tensor, whose range it learns by watching.

    The range is a moving average of each batch's least and greatest value. The gradient passes where the value is
    inside the range (straight-through estimator).

    Args:
      clip: (low, high) at which values are cut first, None for no end: (0, None) is a ReLU, (0, 6) a ReLU6. Rounding
        within the range cuts already, so this costs nothing.
      bits: 8 or 16; 16 is symmetric.
      fixed: (low, high) of a tensor whose range is known, None: watched. With 16 bits that of a softmax, sigmoid or
        tanh becomes the one that LiteRT's kernels have then.
      is_output: the model's output: rounded when the model predicts, not in training, where a rounded probability
        of 0 would have no gradient.

    Source: Jacob et al., 2018, arXiv:1712.05877, sections 3 and 3.1; Bengio et al., 2013, arXiv:1308.3432.

    >>> import numpy as np
    >>> layer = FakeQuant(fixed=(-1.0, 254.0))
    >>> layer(np.array([0.4, 3.7, 300.0])).numpy()
    array([  0.,   4., 254.], dtype=float32)
    """

    def __init__(
        self,
        clip: tuple[float | None, float | None] = (None, None),
        bits: int = 8,
        fixed: tuple[float, float] | None = None,
        is_output: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.clip, self.bits, self.is_output = tuple(clip), bits, is_output
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        if bits == 16 and self.fixed in _WRITTEN_INTO_KERNELS:
            self.fixed = (-_LARGEST_OF_16_BITS, _LARGEST_OF_16_BITS)
        # Whether values pass unrounded while the ranges are found.
        self.calibrates = False
        self.frozen: tuple[float, float] | None = None

    def build(self, input_shape: Any) -> None:
        """Adds the range and the count of batches that it was made from."""
        if self.fixed is None:
            options = {"trainable": False, "dtype": "float32"}
            self.low = self.add_weight(shape=(), initializer="zeros", name="low", **options)
            self.high = self.add_weight(shape=(), initializer="zeros", name="high", **options)
            self.batches = self.add_weight(shape=(), initializer="zeros", name="batches", **options)

    def call(self, inputs: Any, training: bool = False, again: str | None = None) -> Any:
        """Rounds.

        Args:
          inputs: float tensor.
          training: watch the range too.
          again: the tensor comes from this same quantizer through an operator that must not change its scale.
            "exact": its values are on the grid already (max pooling, reshape); "rounded": they are not (resizing);
            "averaged": they are averages of it, of which LiteRT rounds halves away from the integer 0.
        """
        if again == "exact" and self.frozen is None:
            return inputs
        if self.bits == 16 and again is None:
            inputs = self._clip_for_symmetry(inputs)
        if self.frozen is not None:
            return self._round(inputs, *self.frozen)
        if again == "averaged" and self.bits == 8 and not self.calibrates:
            inputs = halves_away_from_zero(inputs, *(self.fixed or self._range()))
        if self.fixed is not None:
            rounds = not (self.calibrates or (training and self.is_output))
            return self._round(inputs, *self.fixed) if rounds else self._clip(inputs)
        if ((training and self.watches) or self.calibrates) and again is None:
            self._watch(inputs)
        if self.calibrates or (training and self.is_output):
            return self._clip(inputs)
        if training:
            return self._round(inputs, *self._range())
        # Without a range yet, rounding would leave nothing of the values.
        return tf.cond(
            self.batches > 0,
            lambda: self._round(inputs, *self._range()),
            lambda: self._clip(inputs),
        )

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        own = {key: getattr(self, key) for key in ("clip", "bits", "fixed", "is_output")}
        return {**super().get_config(), **own}

    @property
    def is_calibrated(self) -> bool:
        """Whether the range is known."""
        return self.fixed is not None or (self.built and float(keras.ops.convert_to_numpy(self.batches)) > 0)

    def freeze(self, input_scale: float | None = None, output_scale: float | None = None) -> None:
        """Computes with the range as a constant from here on, as the file will.

        Raises:
          ValueError: there is no range, or it is not finite.
        """
        if not self.is_calibrated:
            raise ValueError(
                f"the range of {self.name!r} is not known yet: train the model, or show it data with "
                "tfopt.calibrate(model, data), before it is exported"
            )
        low, high = self.fixed or [float(keras.ops.convert_to_numpy(end)) for end in (self.low, self.high)]
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                f"the range of {self.name!r} is {low} to {high}: the training diverged. Train again from the float "
                "model with a lower learning rate"
            )
        low, high = min(low, 0.0), max(high, 0.0)
        self.frozen = nudged_range(low, max(high, low + _SMALLEST_WIDTH), self.bits)

    def thaw(self) -> None:
        """Computes with its variables again."""
        self.frozen = None

    @property
    def scale(self) -> float:
        """The step of the grid, once it is frozen."""
        assert self.frozen is not None
        return range_scale(*self.frozen, self.bits)

    def live_scale(self) -> Any:
        """The step of the grid now, as a tensor or number."""
        return range_scale(*self.fixed, self.bits) if self.fixed else self._step(*self._range())

    def _step(self, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        return tf.maximum(-low, high) / 32767.0 if self.bits == 16 else (high - low) / 255.0

    def _watch(self, inputs: Any) -> None:
        """Moves the range towards that of a batch."""
        lowest, highest = self.clip
        low = tf.constant(0.0) if lowest == 0.0 else tf.minimum(tf.reduce_min(inputs), 0.0)
        high = tf.maximum(tf.reduce_max(inputs), 0.0)
        low = low if lowest is None else tf.maximum(low, lowest)
        if highest is not None:
            high = tf.minimum(high, highest)
        elif self.bits == 8:
            high = tf.where(high == -low, high * _UNEVEN, high)
        low, high = _over_replicas(low, high)
        count = tf.convert_to_tensor(self.batches)
        rate = tf.maximum(1.0 / (count + 1.0), 1.0 - _MOMENTUM)
        self.low.assign(self.low + rate * (low - self.low))
        self.high.assign(self.high + rate * (high - self.high))
        self.batches.assign(count + 1.0)

    def _range(self) -> tuple[tf.Tensor, tf.Tensor]:
        low, high = tf.convert_to_tensor(self.low), tf.convert_to_tensor(self.high)
        return low, tf.maximum(high, low + _SMALLEST_WIDTH)

    def _clip(self, inputs: Any) -> Any:
        low, high = self.clip
        if (low, high) == (0.0, 6.0):
            return tf.nn.relu6(inputs)
        if low is not None:
            inputs = tf.nn.relu(inputs) if low == 0.0 else tf.maximum(inputs, low)
        return inputs if high is None else tf.minimum(inputs, high)

    def _clip_for_symmetry(self, inputs: Any) -> Any:
        """Cuts what rounding will not.

        A range of 8 bits lies within the ends of the clipping, so rounding does both, and what precedes it in the file
        needs no operator for it. A symmetric one of 16 bits reaches as far on the other side of 0.
        """
        low, high = self.clip
        if low is not None and high is not None and low == -high:
            return inputs
        # Not a ReLU6: the converter would find HARD_SWISH around some, which has 8 bits only.
        return tf.nn.relu(inputs) if low == 0.0 else self._clip(inputs)

    def _round(self, inputs: Any, low: Any, high: Any) -> Any:
        if self.frozen is not None:
            # The plain operator of 8 bits, which the converter knows; with 16 it only tells the range.
            return tf.quantization.fake_quant_with_min_max_vars(inputs, *marker_range((low, high), self.bits))
        if self.bits == 16:
            high = tf.maximum(-low, high)
            low = -high
        return fake_quantize(inputs, low, high, self.bits)


def fake_quantize(inputs: Any, low: Any, high: Any, bits: int) -> tf.Tensor:
    """Rounds to the grid of a range, with a gradient of 1 inside the range and 0 outside.

    TensorFlow's own gradient also sums up what the range's ends would get, which nobody reads here.
    """

    @tf.custom_gradient
    def rounded(x: tf.Tensor) -> Any:
        y = tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=bits, narrow_range=bits == 16)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.where((x >= low) & (x <= high), upstream, 0.0)

        return y, gradient

    return rounded(inputs)


def _over_replicas(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The range of the whole batch, from those of each replica's share."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return low, high
    ends = tf.reduce_max(replica.all_gather(tf.stack([-low, high])[None], axis=0), axis=0)
    return -ends[0], ends[1]
