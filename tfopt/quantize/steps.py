"""`StepQuant`: rounds the steps of a sequence, which share one range."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfopt.quantize.fake_quant import FakeQuant

# Where sigmoid and tanh are flat: the range until one is known.
_FIRST_RANGE = (-8.0, 8.0)


class Steps:
    """Rounds the steps of one sequence; see `StepQuant.sequence`."""

    def __init__(self, rounding: Any, is_frozen: bool) -> None:
        self.seen: list[tf.Tensor] = []
        self._rounding, self._is_frozen = rounding, is_frozen

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Rounds a step."""
        self.seen.append(step)
        return self._rounding(step)

    def within(self, step: tf.Tensor) -> tf.Tensor:
        """Rounds what a gate lets through of a step: the range holds it, there is nothing to watch."""
        return self._rounding(step)

    def split(self, step: tf.Tensor, count: int) -> list[tf.Tensor]:
        """Parts of equal size, along the last axis, of a step that was rounded."""
        return self.again(tf.split(step, count, axis=-1))

    def where(self, mask: tf.Tensor, step: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        """One or the other of two steps that were rounded."""
        return self.again([tf.where(mask, step, other)])[0]

    def again(self, parts: list[tf.Tensor]) -> list[tf.Tensor]:
        """Tensors whose values are on the grid already; of each the file must say so."""
        return [self._rounding(part) for part in parts] if self._is_frozen else parts


@keras.saving.register_keras_serializable("tfopt")
class StepQuant(FakeQuant):
    """A `FakeQuant` for the tensors of one kind at every step of a sequence.

    The range follows the least and greatest value of the whole sequence: the mean over the steps would be too small
    for a state that grows. So it moves when the sequence ends, and a step is rounded to what was known before.

    >>> import numpy as np
    >>> layer = StepQuant(fixed=(-1.0, 254.0))
    >>> with layer.sequence(training=False) as steps:
    ...     steps(tf.constant([0.4, 3.7])).numpy()
    array([0., 4.], dtype=float32)
    """

    @contextlib.contextmanager
    def sequence(self, training: bool) -> Iterator[Steps]:
        """Gives what rounds the steps of a sequence, in the block."""
        low, high = self.frozen or self.fixed or self._known_range()

        def rounding(step: tf.Tensor) -> tf.Tensor:
            if self.calibrates:
                return self._clip(step)
            return self._round(step, low, high) if self.frozen is not None else self._round_small(step, low, high)

        steps = Steps(rounding, self.frozen is not None)
        yield steps
        if self.fixed is None and ((training and self.watches) or self.calibrates):
            self._watch(tf.concat(steps.seen, 0))

    def _known_range(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The range so far, read once for all steps."""
        known = tf.convert_to_tensor(self.batches) > 0
        low, high = self._range()
        return tf.where(known, low, _FIRST_RANGE[0]), tf.where(known, high, _FIRST_RANGE[1])

    def _round_small(self, step: tf.Tensor, low: Any, high: Any) -> tf.Tensor:
        """Rounds, with TensorFlow's own gradient: in tensors as small as a step, the number of operators counts."""
        end = None if self.bits == 8 else tf.maximum(-low, high)
        options = {"num_bits": self.bits, "narrow_range": self.bits == 16}
        if self.fixed is not None and end is None:
            return tf.quantization.fake_quant_with_min_max_args(step, low, high, **options)
        low, high = (low, high) if end is None else (-end, end)
        return tf.quantization.fake_quant_with_min_max_vars(step, low, high, **options)
