"""`Augmentation`: what all augmentations share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from tfopt.augment.seeds import fold
from tfopt.config import Config, require


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an augmentation changes.

    Args:
      name: of one of them.
      plural: the same of many.
      types: that they may have.
      range: the types in words.
      axes: of one example.
    """

    name: str
    plural: str
    types: tuple[tf.DType, ...]
    range: str
    axes: tuple[str, ...]

    @property
    def shape(self) -> str:
        """Of one example, in words."""
        return f"({', '.join(self.axes)}{',' * (len(self.axes) == 1)})"


IMAGES = Kind("image", "images", (tf.uint8, tf.float32), "uint8 in [0, 255] or float32 in [0, 1]", ("h", "w", "c"))
SIGNALS = Kind("signal", "signals", (tf.float32,), "float32", ("t", "c"))
TOKENS = Kind("sequence", "sequences of tokens", (tf.int32, tf.int64), "int32 or int64", ("t",))


@dataclasses.dataclass(frozen=True, repr=False)
class Augmentation(Config):
    """A random change of examples: a pure function of each example and its seed.

    So the result is the same in any batch and in any order, under parallel maps, and after a resume.

    Images are uint8 in [0, 255] or float32 in [0, 1], of shape (h, w, c) with one seed, or (n, h, w, c) with n seeds.
    They come back in their type and range. `kind` of a subclass says what else it changes: `SIGNALS`, float32 of shape
    (t, c), or `TOKENS`, integers of shape (t,).
    """

    kind: ClassVar[Kind] = IMAGES

    def __call__(self, examples: Any, seeds: Any) -> tf.Tensor:
        """Changes examples.

        Args:
          examples: for images uint8 or float32, shape (h, w, c) or (n, h, w, c).
          seeds: int64, shape () or (n,).

        Raises:
          ValueError: another shape or type.
        """
        examples, seeds = tf.convert_to_tensor(examples), tf.cast(seeds, tf.int64)
        name, kind = type(self).__name__, self.kind
        require(
            examples.dtype in kind.types,
            f"{name} takes {kind.plural} as {kind.range}, received {examples.dtype.name}: cast them",
        )
        rank, shape = len(kind.axes), examples.shape
        require(
            shape.rank in (rank, rank + 1),
            f"{name} takes {kind.plural} of shape {kind.shape} or (n, {', '.join(kind.axes)}), received {shape}",
        )
        require(
            seeds.shape.rank == shape.rank - rank,
            f"{name} takes a seed for each {kind.name}: received shape {shape} and seeds of {seeds.shape}",
        )
        require(
            rank == 1 or shape[-1] is not None,
            f"{name} must know the number of channels, received {shape}: set the shape of what decodes them",
        )
        if shape.rank > rank:
            return self.apply(examples, seeds)
        return self.apply(examples[None], seeds[None])[0]

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch, shape (n, h, w, c), with a seed for each image; what a subclass writes."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(images, seeds)")


def chain(augmentations: Sequence[Augmentation], examples: Any, seeds: Any) -> tf.Tensor:
    """One augmentation after the other, each with seeds of its own."""
    examples, seeds = tf.convert_to_tensor(examples), tf.cast(seeds, tf.int64)
    for number, each in enumerate(augmentations):
        examples = each(examples, fold(seeds, number))
    return examples


def highest(images: tf.Tensor) -> float:
    """The greatest value of the images' type."""
    return 255.0 if images.dtype == tf.uint8 else 1.0


def in_float(images: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor], negative: bool = True) -> tf.Tensor:
    """A change computed in float32, cut to the range and rounded to the type of the images.

    Args:
      images: uint8 or float32.
      change: of float32.
      negative: whether it can lead below 0; if not, a pass is saved.
    """
    made = tf.minimum(change(tf.cast(images, tf.float32)), highest(images))
    return like(images, tf.maximum(made, 0.0) if negative else made)


def like(images: tf.Tensor, made: tf.Tensor) -> tf.Tensor:
    """Values in the images' range, rounded (halves up) to their type."""
    # The cast cuts off: of what is not negative, that is the floor.
    return tf.cast(made + 0.5, tf.uint8) if images.dtype == tf.uint8 else made


def in_means(images: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A change to weighted means of pixels, computed in float32 and rounded (halves up) to the type of the images."""
    if images.dtype != tf.uint8:
        return change(images)
    # One pass makes floats that are higher by a half, as their means then are: to cut these off is to round.
    raised = tf.raw_ops.Dequantize(
        input=tf.bitcast(images, tf.quint8), min_range=0.5, max_range=255.5, mode="MIN_COMBINED"
    )
    return tf.cast(change(raised), tf.uint8)


def in_bytes(images: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A change defined for the 256 values of uint8; float images are rounded to them."""
    if images.dtype == tf.uint8:
        return change(images)
    return tf.cast(change(tf.cast(tf.round(images * 255.0), tf.uint8)), tf.float32) / 255.0


def switch(
    choice: tf.Tensor, images: tf.Tensor, branches: Sequence[Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]
) -> tf.Tensor:
    """Takes each image through one of several changes to the same shape.

    Args:
      choice: int32, shape (n,): which.
      images: shape (n, h, w, c).
      branches: each is given its images, and where they stand in the batch.
    """
    places = tf.dynamic_partition(tf.range(tf.shape(images)[0]), choice, len(branches))
    parts = tf.dynamic_partition(images, choice, len(branches))
    made = [branch(part, place) for branch, part, place in zip(branches, parts, places, strict=True)]
    whole = tf.dynamic_stitch(places, made)
    whole.set_shape(images.shape[:1].concatenate(made[0].shape[1:]))
    return whole
