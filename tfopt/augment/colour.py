"""Augmentations of colour and light."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from tfopt.augment import tone
from tfopt.augment.base import Augmentation, highest, in_float
from tfopt.augment.seeds import uniform
from tfopt.config import require, require_fraction


@dataclasses.dataclass(frozen=True, repr=False)
class _Factor(Augmentation):
    """A change by a factor that is drawn from [1 - amount, 1 + amount]."""

    amount: float = 0.2
    _negative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_fraction("amount", self.amount, one=True)

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch."""
        factors = uniform(seeds, 0, 1.0 - self.amount, 1.0 + self.amount)
        return in_float(images, lambda x: self._change(x, factors), self._negative)

    def _change(self, x: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        """What the factors do to images in float."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, repr=False)
class Brightness(_Factor):
    """Multiplies each image's light by a factor in [1 - amount, 1 + amount].

    Args:
      amount: in [0, 1].

    >>> import numpy as np
    >>> Brightness(0.0)(np.full((1, 1, 3), 7, "uint8"), 0).numpy().ravel()
    array([7, 7, 7], dtype=uint8)
    """

    _negative: ClassVar[bool] = False

    def _change(self, x: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        return tone.brighten(x, factors)


@dataclasses.dataclass(frozen=True, repr=False)
class Contrast(_Factor):
    """Spreads each image's values around its mean light, by a factor in [1 - amount, 1 + amount].

    Args:
      amount: in [0, 1].

    >>> import numpy as np
    >>> Contrast(0.5)(np.full((2, 2, 1), 9, "uint8"), 0).numpy().ravel()
    array([9, 9, 9, 9], dtype=uint8)
    """

    def _change(self, x: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        return tone.contrast(x, factors)


@dataclasses.dataclass(frozen=True, repr=False)
class Saturation(_Factor):
    """Spreads each pixel's colours around its light, by a factor in [1 - amount, 1 + amount].

    Args:
      amount: in [0, 1].

    >>> import numpy as np
    >>> Saturation(1.0)(np.full((1, 1, 3), 9, "uint8"), 0).numpy().ravel()
    array([9, 9, 9], dtype=uint8)
    """

    def _change(self, x: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        return tone.saturate(x, factors)


@dataclasses.dataclass(frozen=True, repr=False)
class Hue(Augmentation):
    """Turns each image's colours around the circle, by as much as `amount` to either side.

    Args:
      amount: part of the circle, in [0, 0.5].

    Raises:
      ValueError: images that have not three channels.

    >>> import numpy as np
    >>> Hue(0.5)(np.full((1, 1, 3), 9, "uint8"), 0).numpy().ravel()
    array([9, 9, 9], dtype=uint8)
    """

    amount: float = 0.05

    def __post_init__(self) -> None:
        require(0 <= self.amount <= 0.5, f"amount must be in [0, 0.5], received {self.amount}")

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch."""
        require(images.shape[-1] == 3, f"Hue takes images of red, green and blue, received shape {images.shape}")
        turn = uniform(seeds, 0, -self.amount, self.amount)
        return in_float(images, lambda x: tone.shift_hue(x, turn), negative=False)


@dataclasses.dataclass(frozen=True, repr=False)
class Normalize(Augmentation):
    """Subtracts a mean and divides by a deviation, by channel: float32, of no fixed range; the last of a chain.

    Args:
      mean: by channel, of values in [0, 1].
      deviation: by channel, of values in [0, 1], above 0.

    >>> import numpy as np
    >>> Normalize((0.5,), (0.25,))(np.full((1, 1, 1), 255, "uint8"), 0).numpy().item()
    2.0
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    deviation: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        require(
            len(self.mean) == len(self.deviation) and min(self.deviation) > 0,
            f"mean and deviation must be of one length, deviations above 0: received {self.mean}, {self.deviation}",
        )

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch."""
        require(
            len(self.mean) in (1, images.shape[-1]),
            f"{len(self.mean)} means were given for images of {images.shape[-1]} channels",
        )
        return (tf.cast(images, tf.float32) / highest(images) - self.mean) / self.deviation
