"""Augmentations that change when things happen in signals: warps, shifts and gaps."""

import dataclasses
from typing import Literal

import numpy as np
import tensorflow as tf

from tfopt.augment.base import SIGNALS, Augmentation
from tfopt.augment.seeds import below, integers, uniforms
from tfopt.config import require, require_fraction


def sample_at(signals: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
    """Signals at other times, by linear interpolation; as `numpy.interp` along the second axis.

    Args:
      signals: float32, shape (n, t, c).
      times: float32, shape (n, new t), in steps; before 0 and after t - 1 the signal stays as at its ends.

    >>> sample_at(tf.constant([[[0.0], [10.0]]]), tf.constant([[0.25, 3.0]])).numpy().ravel()
    array([ 2.5, 10. ], dtype=float32)
    """
    last = tf.shape(signals)[1] - 1
    times = tf.clip_by_value(times, 0.0, tf.cast(last, tf.float32))
    before = tf.cast(tf.floor(times), tf.int32)
    share = (times - tf.floor(times))[..., None]
    left = tf.gather(signals, before, batch_dims=1)
    right = tf.gather(signals, tf.minimum(before + 1, last), batch_dims=1)
    return left * (1.0 - share) + right * share


@dataclasses.dataclass(frozen=True, repr=False)
class TimeWarp(Augmentation):
    """Makes parts of each signal slower and others faster, smoothly; start and end stay where they are.

    Time u in [0, 1] becomes u + sum over k of a_k sin(pi k u) / (pi k), with sum |a_k| <= strength: so the speed is
    never outside of 1 - strength and 1 + strength.

    Args:
      strength: the greatest change of speed, in [0, 1): 0.2 is a fifth faster or slower.
      waves: how many terms, at least 1; more of them change the speed more often.

    Source: after Um et al., 2017, arXiv:1706.00527, section 3, who draw a spline through random points.

    >>> made = TimeWarp(0.5)(np.arange(101, dtype="float32")[:, None], 0).numpy().ravel()
    >>> float(made[0]), float(made[-1].round(3)), bool((np.diff(made) > 0.4).all())
    (0.0, 100.0, True)
    """

    kind = SIGNALS
    strength: float = 0.2
    waves: int = 3

    def __post_init__(self) -> None:
        require_fraction("strength", self.strength)
        require(self.waves >= 1, f"waves must be at least 1, received {self.waves}")

    def apply(self, signals: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Warps a batch."""
        if not self.strength:
            return signals
        require(
            signals.shape[1] is not None,
            f"TimeWarp must know how long signals are, received {signals.shape}: set the shape of what reads them",
        )
        return sample_at(signals, self.times(signals.shape[1], seeds))

    def times(self, length: int, seeds: tf.Tensor) -> tf.Tensor:
        """When each step is read, in steps: float32, shape (n, length)."""
        steps, last = np.arange(length), max(length - 1, 1)
        most = self.strength / self.waves
        parts, shares = [], uniforms(seeds, *((-most, most) for _ in range(self.waves + 1)))
        for wave in range(1, self.waves + 1):
            curve = np.sin(np.pi * wave * steps / last) * last / (np.pi * wave)
            parts.append(shares[wave][:, None] * tf.constant(curve, tf.float32))
        # Not as a chain of sums, nor as a product of matrices: TensorFlow reorders the first in graphs, and adds up the
        # second in another order for another batch.
        return tf.constant(steps, tf.float32) + tf.reduce_sum(tf.stack(parts), axis=0)


@dataclasses.dataclass(frozen=True, repr=False)
class TimeShift(Augmentation):
    """Moves each signal to earlier or later.

    Args:
      steps: the farthest to either side, at least 0.
      mode: "constant": zeros come in; "wrap": what leaves at one end comes in at the other.

    >>> made = TimeShift(2, "wrap")(np.arange(4, dtype="float32")[:, None], 1).numpy().ravel()
    >>> sorted(made.tolist())
    [0.0, 1.0, 2.0, 3.0]
    """

    kind = SIGNALS
    steps: int
    mode: Literal["constant", "wrap"] = "constant"

    def __post_init__(self) -> None:
        require(self.steps >= 0, f"steps must be at least 0, received {self.steps}")
        require(self.mode in ("constant", "wrap"), f'mode must be "constant" or "wrap", received {self.mode!r}')

    def apply(self, signals: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Shifts a batch."""
        if not self.steps:
            return signals
        length = tf.shape(signals)[1]
        places = tf.range(length) + integers(seeds, 0, 2 * self.steps + 1)[:, None] - self.steps
        moved = tf.gather(signals, places % length, batch_dims=1)
        if self.mode == "constant":
            inside = (places >= 0) & (places < length)
            moved = tf.where(inside[..., None], moved, 0.0)
        return tf.ensure_shape(moved, signals.shape)


@dataclasses.dataclass(frozen=True, repr=False)
class TimeMask(Augmentation):
    """Sets a stretch of each signal to zero, as where a sensor drops out.

    Args:
      fraction: the longest stretch, as a part of the signal, in [0, 1].

    Source: Park et al., SpecAugment, 2019, arXiv:1904.08779, section 2.

    >>> made = TimeMask(0.5)(np.ones((100, 1), "float32"), 0).numpy()
    >>> bool(50 <= made.sum() <= 100)
    True
    """

    kind = SIGNALS
    fraction: float = 0.2

    def __post_init__(self) -> None:
        require_fraction("fraction", self.fraction, one=True)

    def apply(self, signals: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Masks a batch."""
        if not self.fraction:
            return signals
        length = tf.shape(signals)[1]
        longest = tf.cast(self.fraction * tf.cast(length, tf.float32), tf.int32)
        width, start = uniforms(seeds, (0, 1), (0, 1))
        width = below(width, longest + 1)
        start = below(start, length - width + 1)
        places = tf.range(length)
        hidden = (places >= start[:, None]) & (places < (start + width)[:, None])
        return tf.ensure_shape(tf.where(hidden[..., None], 0.0, signals), signals.shape)
