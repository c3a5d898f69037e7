"""Augmentations that change how strong signals are: noise, and a factor for each channel."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfopt.augment.base import SIGNALS, Augmentation
from tfopt.augment.seeds import uniform
from tfopt.config import require

_LEVELS = 2**16


def normal(seeds: tf.Tensor, stream: int, shape: tuple[int | tf.Tensor, ...] = ()) -> tf.Tensor:
    """Normal random numbers of mean 0 and deviation 1, as `tfopt.augment.seeds.uniform` draws others.

    They are the 65,536 middle quantiles, up to 4.3 deviations: looked up rather than computed, since logarithms and
    cosines differ in their last bit with the place in a batch.

    Args:
      seeds: int64, shape (examples,).
      stream: tells apart the numbers that one operation draws.
      shape: of the numbers that each example gets.

    Returns:
      float32, shape (examples, *shape).

    >>> drawn = normal(tf.constant([7], tf.int64), 0, (10_000,)).numpy()
    >>> bool(abs(drawn.mean()) < 0.03), bool(abs(drawn.std() - 1) < 0.03)
    (True, True)
    """
    places = tf.cast(uniform(seeds, stream, shape=shape) * _LEVELS, tf.int32)
    return tf.gather(tf.constant(_quantiles()), places)


@functools.cache
def _quantiles() -> np.ndarray:
    from scipy.special import ndtri

    found = ndtri((np.arange(_LEVELS) + 0.5) / _LEVELS)
    return (found / found.std()).astype("float32")


@dataclasses.dataclass(frozen=True, repr=False)
class Jitter(Augmentation):
    """Adds normal noise to signals.

    Args:
      deviation: of the noise, in the signals' unit, at least 0.

    Source: Um et al., 2017, arXiv:1706.00527, section 3.

    >>> made = Jitter(0.1)(np.zeros((1000, 3), "float32"), 0)
    >>> bool(0.095 < np.std(made) < 0.105)
    True
    """

    kind = SIGNALS
    deviation: float = 0.05

    def __post_init__(self) -> None:
        require(self.deviation >= 0, f"deviation must be at least 0, received {self.deviation}")

    def apply(self, signals: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Adds noise to a batch."""
        if not self.deviation:
            return signals
        shape = tf.shape(signals)
        return tf.ensure_shape(signals + self.deviation * normal(seeds, 0, (shape[1], shape[2])), signals.shape)


@dataclasses.dataclass(frozen=True, repr=False)
class Scaling(Augmentation):
    """Multiplies each channel of each signal by a factor of its own, normal around 1.

    Args:
      deviation: of the factors, at least 0.

    Source: Um et al., 2017, arXiv:1706.00527, section 3.

    >>> made = Scaling(0.1)(np.ones((4, 2), "float32"), 0).numpy()
    >>> bool((made == made[0]).all()), bool(made[0, 0] != made[0, 1])
    (True, True)
    """

    kind = SIGNALS
    deviation: float = 0.1

    def __post_init__(self) -> None:
        require(self.deviation >= 0, f"deviation must be at least 0, received {self.deviation}")

    def apply(self, signals: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Scales a batch."""
        if not self.deviation:
            return signals
        return signals * (1.0 + self.deviation * normal(seeds, 0, (1, signals.shape[2])))
