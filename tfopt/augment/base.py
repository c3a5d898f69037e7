"""`Augmentation`: what all augmentations of images share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfopt.augment.seeds import fold
from tfopt.config import Config, require


@dataclasses.dataclass(frozen=True, repr=False)
class Augmentation(Config):
    """A random change of images: a pure function of each image and its seed.

    So the result is the same in any batch and in any order, under parallel maps, and after a resume.

    Images are uint8 in [0, 255] or float32 in [0, 1], of shape (h, w, c) with one seed, or (n, h, w, c) with n seeds.
    They come back in their type and range.
    """

    def __call__(self, images: Any, seeds: Any) -> tf.Tensor:
        """Changes images.

        Args:
          images: uint8 or float32, shape (h, w, c) or (n, h, w, c).
          seeds: int64, shape () or (n,).

        Raises:
          ValueError: another shape or type.
        """
        images, seeds = tf.convert_to_tensor(images), tf.cast(seeds, tf.int64)
        name = type(self).__name__
        require(
            images.dtype in (tf.uint8, tf.float32),
            f"{name} takes images as uint8 in [0, 255] or float32 in [0, 1], received {images.dtype.name}: cast them",
        )
        require(
            images.shape.rank in (3, 4),
            f"{name} takes images of shape (h, w, c) or (n, h, w, c), received {images.shape}",
        )
        require(
            seeds.shape.rank == images.shape.rank - 3,
            f"{name} takes a seed for each image: received images of shape {images.shape} and seeds of {seeds.shape}",
        )
        require(
            images.shape[-1] is not None,
            f"{name} must know the number of channels, received {images.shape}: set the shape of what decodes them",
        )
        if images.shape.rank == 4:
            return self.apply(images, seeds)
        return self.apply(images[None], seeds[None])[0]

    def apply(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch, shape (n, h, w, c), with a seed for each image; what a subclass writes."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(images, seeds)")


def chain(augmentations: Sequence[Augmentation], images: Any, seeds: Any) -> tf.Tensor:
    """One augmentation after the other, each with seeds of its own."""
    images, seeds = tf.convert_to_tensor(images), tf.cast(seeds, tf.int64)
    for number, each in enumerate(augmentations):
        images = each(images, fold(seeds, number))
    return images


def highest(images: tf.Tensor) -> float:
    """The greatest value of the images' type."""
    return 255.0 if images.dtype == tf.uint8 else 1.0


def in_float(images: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A change computed in float32, cut to the range and rounded to the type of the images."""
    changed = tf.clip_by_value(change(tf.cast(images, tf.float32)), 0.0, highest(images))
    return tf.cast(tf.floor(changed + 0.5), tf.uint8) if images.dtype == tf.uint8 else changed


def in_bytes(images: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A change defined for the 256 values of uint8; float images are rounded to them."""
    if images.dtype == tf.uint8:
        return change(images)
    return tf.cast(change(tf.cast(tf.round(images * 255.0), tf.uint8)), tf.float32) / 255.0


def switch(
    choice: tf.Tensor, images: tf.Tensor, branches: Sequence[Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]
) -> tf.Tensor:
    """Takes each image through one of several changes of the same shape.

    Args:
      choice: int32, shape (n,): which.
      images: shape (n, h, w, c).
      branches: each is given its images, and where they stand in the batch.
    """
    places = tf.dynamic_partition(tf.range(tf.shape(images)[0]), choice, len(branches))
    parts = tf.dynamic_partition(images, choice, len(branches))
    made = [branch(part, place) for branch, part, place in zip(branches, parts, places, strict=True)]
    whole = tf.dynamic_stitch(places, made)
    whole.set_shape(images.shape)
    return whole
