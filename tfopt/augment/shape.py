"""Augmentations that move pixels: flips, crops, rotations, zooms, and rectangles that are erased."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import tensorflow as tf

from tfopt.augment.base import Augmentation, in_float, in_means, switch
from tfopt.augment.seeds import below, uniform, uniforms
from tfopt.augment.warp import matrices, warp
from tfopt.config import require, require_fraction

# Left edges of windows that are cut at a time.
_EDGES = 16

Interpolation = Literal["nearest", "bilinear"]


@dataclasses.dataclass(frozen=True, repr=False)
class Flip(Augmentation):
    """Mirrors images, each with a probability.

    Args:
      horizontal: probability of left for right, in [0, 1].
      vertical: probability of upside down, in [0, 1].

    >>> import numpy as np
    >>> Flip(horizontal=1.0)(np.arange(3, dtype="uint8").reshape(1, 3, 1), 0).numpy().ravel()
    array([2, 1, 0], dtype=uint8)
    """

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self) -> None:
        require_fraction("horizontal", self.horizontal, one=True)
        require_fraction("vertical", self.vertical, one=True)

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Mirrors a batch."""
        for stream, (axis, probability) in enumerate(((2, self.horizontal), (1, self.vertical))):
            if probability:
                chosen = tf.cast(uniform(seeds, stream) < probability, tf.int32)
                images = switch(chosen, images, [_as_it_is, functools.partial(_mirrored, axis)])
        return images


@dataclasses.dataclass(frozen=True, repr=False)
class Crop(Augmentation):
    """Cuts a random window of one size out of each image.

    Args:
      height: of the window, pixels, at least 1.
      width: of the window, pixels, at least 1.

    >>> import numpy as np
    >>> Crop(2, 2)(np.zeros((4, 5, 3), "uint8"), 0).shape
    TensorShape([2, 2, 3])
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        require(
            self.height >= 1 and self.width >= 1, f"Crop takes sizes of at least 1, received {self.height, self.width}"
        )

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Cuts windows out of a batch."""
        high, wide = images.shape[1:3]
        require(
            (high is None or high >= self.height) and (wide is None or wide >= self.width),
            f"{self} is larger than images of {high} x {wide}: pad or resize them first",
        )
        shape = tf.shape(images)
        top, left = uniforms(seeds, (0, 1), (0, 1))
        top, left = below(top, shape[1] - self.height + 1), below(left, shape[2] - self.width + 1)
        if images.dtype == tf.float32:
            cut = _glimpses(images, top, left, self.height, self.width)
        elif wide is None:
            return _one_by_one(images, top, left, self.height, self.width)
        else:
            cut = _windows(images, top, left, self.height, self.width, wide - self.width + 1)
        cut.set_shape((images.shape[0], self.height, self.width, images.shape[-1]))
        return cut


@dataclasses.dataclass(frozen=True, repr=False)
class PadCrop(Augmentation):
    """Pads all sides and cuts a window of the old size out: the usual augmentation of CIFAR.

    Args:
      pixels: added on each side, at least 0.
      mode: "constant" for zeros, or "reflect".

    Source: He et al., 2016, arXiv:1512.03385, section 4.2.

    >>> import numpy as np
    >>> PadCrop(1)(np.ones((4, 4, 1), "uint8"), 3).shape
    TensorShape([4, 4, 1])
    """

    pixels: int = 4
    mode: Literal["constant", "reflect"] = "constant"

    def __post_init__(self) -> None:
        require(self.pixels >= 0, f"pixels must be at least 0, received {self.pixels}")
        require(self.mode in ("constant", "reflect"), f'mode must be "constant" or "reflect", received {self.mode!r}')

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Shifts a batch."""
        if not self.pixels:
            return images
        top, left = (below(each, 2 * self.pixels + 1) for each in uniforms(seeds, (0, 1), (0, 1)))
        shape = tf.shape(images)
        if images.dtype == tf.float32 and self.mode == "constant":
            moved = _glimpses(images, top - self.pixels, left - self.pixels, shape[1], shape[2])
        else:
            around = (self.pixels, self.pixels)
            padded = tf.pad(images, ((0, 0), around, around, (0, 0)), self.mode.upper())
            cut = functools.partial(_windows, edges=2 * self.pixels + 1) if images.dtype == tf.uint8 else _glimpses
            moved = cut(padded, top, left, shape[1], shape[2])
        moved.set_shape(images.shape)
        return moved


@dataclasses.dataclass(frozen=True, repr=False)
class Resize(Augmentation):
    """Resizes images; nothing about it is random.

    Args:
      height: pixels, at least 1.
      width: pixels, at least 1.
      method: as in `tf.image.resize`: "bilinear", "nearest", "bicubic", "area", "lanczos3".
      antialias: smooth before images become smaller: better pictures, a few times as slow.

    >>> import numpy as np
    >>> Resize(2, 3)(np.zeros((4, 6, 1), "uint8"), 0).shape
    TensorShape([2, 3, 1])
    """

    height: int
    width: int
    method: str = "bilinear"
    antialias: bool = False

    def __post_init__(self) -> None:
        require(
            self.height >= 1 and self.width >= 1,
            f"Resize takes sizes of at least 1, received {self.height, self.width}",
        )

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Resizes a batch."""

        def resized(pixels: tf.Tensor) -> tf.Tensor:
            return tf.image.resize(pixels, (self.height, self.width), self.method, antialias=self.antialias)

        if self.method == "nearest":
            return resized(images)
        # The others go beyond the range.
        return (in_means if self.method in ("bilinear", "area") else in_float)(images, resized)


@dataclasses.dataclass(frozen=True, repr=False)
class Affine(Augmentation):
    """Turns, shifts, shears and zooms images at random, in one step.

    Args:
      degrees: the widest turn to either side, at least 0.
      shift: the farthest shift to each side, as a part of the size, in [0, 1).
      shear: the widest shear to either side, degrees in [0, 90).
      zoom: (least, greatest) scale, above 0: 1 keeps the size, 2 doubles it.
      interpolation: "bilinear" or "nearest".
      fill: what comes in from outside, in the images' range.

    >>> import numpy as np
    >>> turned = Affine(degrees=10.0, zoom=(0.9, 1.1))(np.ones((5, 5, 1), "float32"), 0)
    >>> float(turned[2, 2, 0])
    1.0
    """

    degrees: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    interpolation: Interpolation = "bilinear"
    fill: float = 0.0

    def __post_init__(self) -> None:
        require(self.degrees >= 0, f"degrees must be at least 0, received {self.degrees}")
        require_fraction("shift", self.shift)
        require(0 <= self.shear < 90, f"shear must be in [0, 90) degrees, received {self.shear}")
        require(
            len(self.zoom) == 2 and 0 < self.zoom[0] <= self.zoom[1],
            f"zoom must be (least, greatest) with 0 < least <= greatest, received {self.zoom}",
        )
        require(
            self.interpolation in ("nearest", "bilinear"),
            f'interpolation must be "nearest" or "bilinear", received {self.interpolation!r}',
        )

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Moves the pixels of a batch."""
        if self == Affine(interpolation=self.interpolation, fill=self.fill):
            return images
        shape = tf.shape(images)
        size = shape[1], shape[2]
        tangent = math.tan(math.radians(self.shear))

        limits = (self.degrees, tangent, tangent, self.shift, self.shift)
        degrees, across, along, right, down, zoom = uniforms(seeds, *((-limit, limit) for limit in limits), self.zoom)
        transforms = matrices(
            size,
            degrees,
            (across, along),
            (right * tf.cast(size[1], tf.float32), down * tf.cast(size[0], tf.float32)),
            zoom,
        )
        upright = not (self.degrees or self.shear)
        return warp(images, transforms, self.interpolation, self.fill, upright)


@dataclasses.dataclass(frozen=True, repr=False)
class Erase(Augmentation):
    """Erases a rectangle of each image with a probability (random erasing; with a fixed square, cutout).

    Args:
      probability: in [0, 1].
      area: (least, greatest) part of the image, in [0, 1].
      ratio: (least, greatest) height over width, above 0.
      fill: the value in its place, in the images' range.

    Source: Zhong et al., 2020, arXiv:1708.04896; DeVries and Taylor, 2017, arXiv:1708.04552.

    >>> import numpy as np
    >>> int(tf.reduce_sum(Erase(1.0, area=(0.25, 0.25), ratio=(1.0, 1.0))(np.ones((8, 8, 1), "uint8"), 0)))
    48
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: float = 0.0

    def __post_init__(self) -> None:
        require_fraction("probability", self.probability, one=True)
        require(
            len(self.area) == 2 and 0 <= self.area[0] <= self.area[1] <= 1,
            f"area must be (least, greatest) in [0, 1], received {self.area}",
        )
        require(
            len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1],
            f"ratio must be (least, greatest) above 0, received {self.ratio}",
        )

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Erases a rectangle of each image of a batch."""
        shape = tf.shape(images)
        high, wide = tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
        # Even in the logarithm, so that tall and wide ones are as many.
        ratios = math.log(self.ratio[0]), math.log(self.ratio[1])
        area, ratio, top, left, chosen = uniforms(seeds, self.area, ratios, (0, 1), (0, 1), (0, 1))
        area, ratio = area * high * wide, tf.exp(ratio)
        height = tf.minimum(tf.round(tf.sqrt(area * ratio)), high)
        width = tf.minimum(tf.round(tf.sqrt(area / ratio)), wide)
        top, left = tf.floor(top * (high - height + 1.0)), tf.floor(left * (wide - width + 1.0))
        height = tf.where(chosen < self.probability, height, 0.0)
        rows, columns = tf.range(high)[None], tf.range(wide)[None]
        in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
        inside = in_rows[:, :, None, None] & in_columns[:, None, :, None]
        return tf.where(inside, tf.cast(self.fill, images.dtype), images)


def _as_it_is(images: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    return images


def _mirrored(axis: int, images: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    return tf.reverse(images, (axis,))


def _glimpses(
    images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor
) -> tf.Tensor:
    """A window of each image, float32, at places of its own; zeros where it reaches beyond the image.

    The only operation of TensorFlow that cuts all windows in one pass, of this type alone. It has no gradient of its
    own: that of a window is the window at the opposite place.
    """

    @tf.custom_gradient
    def cut(images: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        shape = tf.shape(images)
        cutting = functools.partial(
            tf.raw_ops.ExtractGlimpseV2, centered=False, normalized=False, uniform_noise=False, noise="zero"
        )
        places = tf.cast(tf.stack([top, left], axis=1), tf.float32)
        made = cutting(input=images, size=tf.stack([height, width]), offsets=places)
        return made, lambda grown: cutting(input=grown, size=shape[1:3], offsets=-places)

    return cut(images)


def _windows(
    images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor, edges: int
) -> tf.Tensor:
    """A window of each image, at places of its own.

    Whole rows are quick to take, single pixels are not: so columns are cut from all images at once that have the same
    left edge. Where there are many edges, first to the neighbourhood of the edge, so that there are few at a time.

    Args:
      images: shape (n, h, w, c).
      top: int32, shape (n,).
      left: the same, below `edges`.
      height: of a window.
      width: of a window.
      edges: how many left edges there are: w - width + 1.
    """
    while edges > _EDGES:
        step = _EDGES
        while edges > _EDGES * step:
            step *= _EDGES
        # The last neighbourhood begins earlier, so that it ends with the image.
        starts = [min(start, edges - step) for start in range(0, edges, step)]
        which = left // step
        cuts = [functools.partial(_columns, start, start + width + step - 1) for start in starts]
        images = switch(which, images, cuts)
        left, edges = left - tf.gather(tf.constant(starts), which), step
    count, high, wide, _ = tf.unstack(tf.shape(images))
    rows, first = tf.reshape(images, (-1, wide, images.shape[-1])), tf.range(count) * high + top
    places = tf.dynamic_partition(tf.range(count), left, edges)
    parts = [
        tf.gather(rows, tf.gather(first, place)[:, None] + tf.range(height))[:, :, edge : edge + width]
        for edge, place in enumerate(places)
    ]
    return tf.dynamic_stitch(places, parts)


def _one_by_one(images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """The same where the width is not known before the images are there: single images, as a rule."""
    shape = (height, width, images.shape[-1])
    return tf.map_fn(
        lambda each: tf.slice(each[0], (each[1], each[2], 0), shape),
        (images, top, left),
        fn_output_signature=tf.TensorSpec(shape, images.dtype),
    )


def _columns(first: int, last: int | tf.Tensor, images: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    return images[:, :, first:last]
