"""MixUp and CutMix: each example of a batch with another one, labels too."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfopt.augment.base import like
from tfopt.augment.seeds import fold, uniform
from tfopt.config import Config, require


@dataclasses.dataclass(frozen=True, repr=False)
class _Mix(Config):
    """What both have: the partner is the next example of the shuffled batch, the share is drawn for each."""

    alpha: float = 0.2

    def __post_init__(self) -> None:
        require(self.alpha >= 0, f"alpha must be at least 0, received {self.alpha}")

    def __call__(self, images: Any, labels: Any, seeds: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch.

        Args:
          images: uint8 or float32, shape (n, h, w, c).
          labels: probabilities, float, shape (n, classes).
          seeds: int64, shape (n,).

        Raises:
          ValueError: another shape or type.
        """
        images, labels, name = tf.convert_to_tensor(images), tf.convert_to_tensor(labels), type(self).__name__
        require(images.shape.rank == 4, f"{name} takes batches (n, h, w, c), received shape {images.shape}")
        require(
            labels.dtype.is_floating and labels.shape.rank == 2,
            f"{name} mixes labels as probabilities, float of shape (n, classes): received {labels.dtype.name} of "
            f"{labels.shape}; make them with tf.one_hot, and train with categorical_crossentropy",
        )
        return self.apply(images, labels, tf.cast(seeds, tf.int64)) if self.alpha else (images, labels)

    def apply(self, images: tf.Tensor, labels: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch; what a subclass writes."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(images, labels, seeds)")


@dataclasses.dataclass(frozen=True, repr=False)
class MixUp(_Mix):
    """Mixes each image, and its label, with the next of the batch.

    Args:
      alpha: of the Beta(alpha, alpha) that the share of the image is drawn from; 0 mixes nothing, 1 evenly.

    Source: Zhang et al., 2018, arXiv:1710.09412.

    >>> import numpy as np
    >>> images, labels = np.zeros((2, 4, 4, 1), "float32"), np.eye(2, dtype="float32")
    >>> MixUp()(images, labels, np.arange(2))[1].numpy().sum(1)
    array([1., 1.], dtype=float32)
    """

    def apply(self, images: tf.Tensor, labels: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch."""
        share = beta(seeds, self.alpha)
        weight = share[:, None, None, None]
        values = tf.cast(images, tf.float32)
        mixed = weight * values + (1.0 - weight) * tf.roll(values, -1, 0)
        return like(images, mixed), _mixed_labels(labels, share)


@dataclasses.dataclass(frozen=True, repr=False)
class CutMix(_Mix):
    """Pastes a rectangle of the next image of the batch into each, and mixes labels by its area.

    Args:
      alpha: of the Beta(alpha, alpha) that the share of the image is drawn from; 0 mixes nothing, 1 evenly.

    Source: Yun et al., 2019, arXiv:1905.04899.

    >>> import numpy as np
    >>> images, labels = np.zeros((2, 4, 4, 1), "uint8"), np.eye(2, dtype="float32")
    >>> CutMix(1.0)(images, labels, np.arange(2))[1].numpy().sum(1)
    array([1., 1.], dtype=float32)
    """

    alpha: float = 1.0

    def apply(self, images: tf.Tensor, labels: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes a batch."""
        shape = tf.cast(tf.shape(images), tf.float32)
        side = tf.sqrt(1.0 - beta(seeds, self.alpha))
        inside, part = [], tf.ones_like(side)
        for stream, size in ((10, shape[1]), (11, shape[2])):
            middle = uniform(seeds, stream) * size
            start = tf.round(tf.maximum(middle - side * size / 2.0, 0.0))
            end = tf.round(tf.minimum(middle + side * size / 2.0, size))
            places = tf.range(size)[None]
            inside.append((places >= start[:, None]) & (places < end[:, None]))
            part *= (end - start) / size
        pasted = inside[0][:, :, None, None] & inside[1][:, None, :, None]
        return tf.where(pasted, tf.roll(images, -1, 0), images), _mixed_labels(labels, 1.0 - part)


def beta(seeds: tf.Tensor, alpha: float) -> tf.Tensor:
    """Numbers of Beta(alpha, alpha), shape (n,): by Jöhnk's method up to 1, else from sums of exponentials.

    Source: Jöhnk, 1964, Metrika 8; for alpha above 1, rounded to a whole number, the ratio of gamma variables.

    >>> drawn = beta(tf.range(4000, dtype=tf.int64), 0.4).numpy()
    >>> bool(abs(drawn.mean() - 0.5) < 0.02), bool(abs(drawn.var() - 1 / (4 * 1.8)) < 0.01)
    (True, True)
    """
    if alpha > 1:
        count = round(alpha)
        one, other = (-tf.reduce_sum(tf.math.log1p(-uniform(fold(seeds, i), 0, shape=(count,))), -1) for i in (0, 1))
        return one / (one + other)
    # Of so many trials, each taken with a probability of at least 1/2 up to alpha = 1, one is sure to be.
    trials = 24
    u, v = (tf.pow(uniform(seeds, stream, 1e-7, shape=(trials,)), 1.0 / alpha) for stream in (0, 1))
    taken = (u + v <= 1.0) & (u + v > 0.0)
    first = tf.argmax(tf.cast(taken, tf.int32), -1)[:, None]
    u, v = (tf.squeeze(tf.gather(each, first, batch_dims=1), -1) for each in (u, v))
    return tf.where(tf.reduce_any(taken, -1), tf.math.divide_no_nan(u, u + v), 0.5)


def _mixed_labels(labels: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    weight = tf.cast(share, labels.dtype)[:, None]
    return weight * labels + (1.0 - weight) * tf.roll(labels, -1, 0)
