"""RandAugment, TrivialAugment and AugMix: random choices among fourteen changes."""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from tfopt.augment import tone
from tfopt.augment.base import Augmentation, in_bytes, in_float, switch
from tfopt.augment.seeds import fold, integers, uniform
from tfopt.augment.warp import matrices, warp
from tfopt.config import Config, require, require_fraction

GEOMETRY = ("rotate", "shear_x", "shear_y", "shift_x", "shift_y")
TONES = ("brightness", "colour", "contrast", "sharpness")
CHANGES = ("identity", "autocontrast", "equalize", "posterize", "solarize", *TONES, *GEOMETRY)
# AugMix leaves out what its test corruptions are made of.
MIXED = ("autocontrast", "equalize", "posterize", "solarize", *GEOMETRY)


@dataclasses.dataclass(frozen=True, repr=False)
class Ranges(Config):
    """How far the changes go at strength 1; at 0 all but autocontrast and equalize leave the image.

    Args:
      degrees: of a turn.
      shear: tangent.
      shift: part of the size.
      bits: taken from the eight of posterize.
      factor: distance from 1 of the factors of light, colour and sharpness.

    >>> Ranges(degrees=45.0)
    Ranges(degrees=45.0)
    """

    degrees: float = 30.0
    shear: float = 0.3
    shift: float = 0.45
    bits: int = 4
    factor: float = 0.9


WIDE = Ranges(degrees=135.0, shear=0.99, shift=0.5, bits=6, factor=0.99)


def change(
    images: tf.Tensor, choice: tf.Tensor, strength: tf.Tensor, seeds: tf.Tensor, ranges: Ranges = Ranges()
) -> tf.Tensor:
    """Changes each image in one way.

    Args:
      images: uint8, shape (n, h, w, c).
      choice: index into `CHANGES`, int32, shape (n,).
      strength: in [0, 1], shape (n,).
      seeds: choose the sign of what has one; shape (n,).
      ranges: what strength 1 means.
    """
    signed = tf.where(uniform(seeds, 0) < 0.5, -strength, strength)
    first = CHANGES.index(GEOMETRY[0])

    def toned(kind: str, part: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        compute = {
            "brightness": tone.brighten,
            "colour": tone.saturate,
            "contrast": tone.contrast,
            "sharpness": tone.sharpen,
        }[kind]
        factor = 1.0 + ranges.factor * tf.gather(signed, place)
        return in_float(part, lambda x: compute(x, factor))

    def moved(part: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        kind, amount = tf.gather(choice, place) - first, tf.gather(signed, place)
        turn, shear_x, shear_y, shift_x, shift_y = (tf.where(kind == each, amount, 0.0) for each in range(5))
        shape = tf.shape(part)
        size = shape[1], shape[2]
        high, wide = (tf.cast(each, tf.float32) for each in size)
        transforms = matrices(
            size,
            turn * ranges.degrees,
            (shear_x * ranges.shear, shear_y * ranges.shear),
            (shift_x * ranges.shift * wide, shift_y * ranges.shift * high),
        )
        return warp(part, transforms, "nearest")

    def posterized(part: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        lost = tf.cast(tf.round(ranges.bits * tf.gather(strength, place)), tf.int32)
        return tone.posterize(part, 8 - lost)

    branches: list[Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = [
        lambda part, place: part,
        lambda part, place: tone.autocontrast(part),
        lambda part, place: tone.equalize(part),
        posterized,
        lambda part, place: tone.solarize(part, 256.0 * (1.0 - tf.gather(strength, place))),
        *(functools.partial(toned, kind) for kind in TONES),
        moved,
    ]
    # All moves are one transform.
    return switch(tf.minimum(choice, first), images, branches)


@dataclasses.dataclass(frozen=True, repr=False)
class RandAugment(Augmentation):
    """A few random changes after each other, all of one strength.

    Args:
      count: how many, at least 0.
      magnitude: their strength, in [0, 1]: 0.3 is 9 of 30 in the paper; 0 leaves images as they are.
      ranges: what magnitude 1 means.

    Source: Cubuk et al., 2020, arXiv:1909.13719.

    >>> import numpy as np
    >>> RandAugment()(np.zeros((4, 8, 8, 3), "uint8"), np.arange(4)).shape
    TensorShape([4, 8, 8, 3])
    """

    count: int = 2
    magnitude: float = 0.3
    ranges: Ranges = Ranges()

    def __post_init__(self) -> None:
        require(self.count >= 0, f"count must be at least 0, received {self.count}")
        require_fraction("magnitude", self.magnitude, one=True)

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch."""
        if not self.magnitude:
            return images

        def changed(current: tf.Tensor) -> tf.Tensor:
            strength = tf.fill(tf.shape(seeds), self.magnitude)
            for layer in range(self.count):
                own = fold(seeds, layer)
                current = change(current, integers(own, 1, len(CHANGES)), strength, own, self.ranges)
            return current

        return in_bytes(images, changed)


@dataclasses.dataclass(frozen=True, repr=False)
class TrivialAugment(Augmentation):
    """One random change of random strength.

    Args:
      magnitude: the greatest strength, in [0, 1]; 0 leaves images as they are.
      ranges: what strength 1 means; the paper's wide ones.

    Source: Müller and Hutter, 2021, arXiv:2103.10158.

    >>> import numpy as np
    >>> TrivialAugment()(np.zeros((4, 8, 8, 3), "uint8"), np.arange(4)).shape
    TensorShape([4, 8, 8, 3])
    """

    magnitude: float = 1.0
    ranges: Ranges = WIDE

    def __post_init__(self) -> None:
        require_fraction("magnitude", self.magnitude, one=True)

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch."""
        if not self.magnitude:
            return images
        choice, strength = integers(seeds, 1, len(CHANGES)), uniform(seeds, 2, 0.0, self.magnitude)
        return in_bytes(images, lambda x: change(x, choice, strength, seeds, self.ranges))


@dataclasses.dataclass(frozen=True, repr=False)
class AugMix(Augmentation):
    """A mixture of several chains of changes, mixed with the image itself.

    Args:
      width: chains, at least 1.
      depth: the most changes in a chain, at least 1; how many is drawn.
      magnitude: the greatest strength, in [0, 1]; 0 leaves images as they are.
      ranges: what strength 1 means.

    Source: Hendrycks et al., 2020, arXiv:1912.02781, algorithm 1, with alpha = 1.

    >>> import numpy as np
    >>> AugMix()(np.zeros((4, 8, 8, 3), "uint8"), np.arange(4)).shape
    TensorShape([4, 8, 8, 3])
    """

    width: int = 3
    depth: int = 3
    magnitude: float = 0.3
    ranges: Ranges = Ranges()

    def __post_init__(self) -> None:
        require(
            self.width >= 1 and self.depth >= 1,
            f"width and depth must be at least 1, received {self.width, self.depth}",
        )
        require_fraction("magnitude", self.magnitude, one=True)

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch."""
        if not self.magnitude:
            return images
        among = tf.constant([CHANGES.index(name) for name in MIXED], tf.int32)
        # Dirichlet(1, …, 1): exponential numbers over their sum.
        drawn = -tf.math.log1p(-uniform(seeds, 1, shape=(self.width,)))
        weights = drawn / tf.reduce_sum(drawn, -1, keepdims=True)

        def chained(current: tf.Tensor) -> tf.Tensor:
            """All chains of all images as one batch, chain by chain."""
            current = tf.tile(current, (self.width, 1, 1, 1))
            own = tf.concat([fold(seeds, chain) for chain in range(self.width)], 0)
            depth = 1 + integers(own, 1, self.depth)
            for layer in range(self.depth):
                step = fold(own, layer)
                choice = tf.gather(among, integers(step, 1, len(MIXED)))
                choice = tf.where(layer < depth, choice, CHANGES.index("identity"))
                current = change(current, choice, uniform(step, 2, 0.0, self.magnitude), step, self.ranges)
            return current

        def mixed(current: tf.Tensor) -> tf.Tensor:
            each = tf.split(tf.cast(chained(current), tf.float32), self.width)
            mixture = tf.add_n([part * weights[:, i, None, None, None] for i, part in enumerate(each)])
            share = uniform(seeds, 2)
            return in_float(current, lambda x: tone.blend(x, mixture, share), negative=False)

        return in_bytes(images, mixed)
