"""Moves of pixels: rotations, shears, shifts and zooms of a batch of images, each its own."""

import numpy as np
import tensorflow as tf

from tfopt.augment.base import in_means


def matrices(
    size: tuple[tf.Tensor, tf.Tensor],
    degrees: tf.Tensor | float = 0.0,
    shear: tuple[tf.Tensor | float, tf.Tensor | float] = (0.0, 0.0),
    shift: tuple[tf.Tensor | float, tf.Tensor | float] = (0.0, 0.0),
    zoom: tf.Tensor | float = 1.0,
) -> tf.Tensor:
    """What place in the image each place in the result comes from, around the middle.

    Args:
      size: height and width, pixels.
      degrees: of a turn against the clock, shape (n,) or a number, as all that follows.
      shear: part of the height by which columns move down, then rows to the right, as tangents (x, y).
      shift: by how many pixels the picture moves to the right and down.
      zoom: above 1 the picture grows.

    Returns:
      float32, shape (n, 8), for `warp`.
    """
    angle = degrees * (np.pi / 180.0)
    cos, sin = tf.cos(angle) / zoom, tf.sin(angle) / zoom
    across, down = shear
    # The inverse of turning and shearing, row by row; the identity is 1 0 / 0 1.
    a, b = cos + across * sin, across * cos - sin
    c, d = sin + down * cos, cos - down * sin
    height, width = (tf.cast(each, tf.float32) for each in size)
    middle_x, middle_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    x, y = middle_x + shift[0], middle_y + shift[1]
    rows = (a, b, middle_x - a * x - b * y, c, d, middle_y - c * x - d * y)
    count = tf.reduce_max(tf.stack([tf.size(each) for each in rows]))
    parts = [tf.broadcast_to(tf.cast(each, tf.float32), (count,)) for each in rows]
    return tf.stack([*parts, tf.zeros(count), tf.zeros(count)], -1)


def warp(
    images: tf.Tensor,
    transforms: tf.Tensor,
    interpolation: str = "bilinear",
    fill: float = 0.0,
    upright: bool = False,
) -> tf.Tensor:
    """Takes each pixel from the place that its image's transform tells.

    Args:
      images: shape (n, h, w, c); uint8 or float32.
      transforms: shape (n, 8).
      interpolation: "nearest" or "bilinear".
      fill: the value outside of the image.
      upright: whether rows stay rows and columns columns, without turn and shear, which takes half the time.
    """
    if interpolation == "nearest":
        return _nearest(images, transforms, fill)
    # Within in_means values are higher by a half.
    raised = fill + (0.5 if images.dtype == tf.uint8 else 0.0)
    made = in_means(images, lambda pixels: (_windows if upright else _points)(pixels, transforms, raised))
    made.set_shape(images.shape)
    return made


def _windows(images: tf.Tensor, transforms: tf.Tensor, fill: float) -> tf.Tensor:
    """Bilinear values of a window of each image, which transforms without turn and shear lead to."""
    shape = tf.shape(images)
    first, last = (0.0, 0.0, 1.0), (*tf.unstack(tf.cast(shape[2:0:-1] - 1, tf.float32)), 1.0)
    boxes = tf.reshape(tf.matmul(tf.stack([first, last]), _rows(transforms, shape), transpose_b=True), (-1, 4))
    return _sampled(images, boxes, tf.range(shape[0]), shape[1:3], fill)


def _points(images: tf.Tensor, transforms: tf.Tensor, fill: float) -> tf.Tensor:
    """Bilinear values at any places: each a window of one pixel, which is quicker than TensorFlow's own transforms.

    These compute the place and the weights again for each channel.
    """
    shape = tf.shape(images)
    count, high, wide = shape[0], shape[1], shape[2]
    x, y = tf.meshgrid(tf.range(tf.cast(wide, tf.float32)), tf.range(tf.cast(high, tf.float32)))
    grid = tf.reshape(tf.stack([x, y, tf.ones_like(x)], -1), (-1, 3))
    # Top and left of a window are its bottom and right too.
    rows = tf.tile(_rows(transforms, shape), (1, 2, 1))
    boxes = tf.reshape(tf.matmul(grid, rows, transpose_b=True), (-1, 4))
    which = tf.reshape(tf.broadcast_to(tf.range(count)[:, None], (count, high * wide)), (-1,))
    return tf.reshape(_sampled(images, boxes, which, (1, 1), fill), shape)


def _rows(transforms: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """What (x, y, 1) in the result is multiplied with for row and column in `_sampled`, shape (n, 2, 3)."""
    rows = tf.reverse(tf.reshape(transforms[:, :6], (-1, 2, 3)), (1,))
    # In the bordered image all is one pixel further, and its last pixel at 1.
    return (rows + tf.constant((0.0, 0.0, 1.0))) / tf.cast(shape[1:3] + 1, tf.float32)[:, None]


def _sampled(
    images: tf.Tensor, boxes: tf.Tensor, which: tf.Tensor, size: tuple[int, int] | tf.Tensor, fill: float
) -> tf.Tensor:
    """Bilinear values on a grid in each box.

    Args:
      images: float32, shape (n, h, w, c).
      boxes: first row, first column, last row and last column as parts of the bordered image, shape (boxes, 4).
      which: a box's image, int32, shape (boxes,).
      size: rows and columns of a grid.
      fill: the value outside of the image.
    """
    # With a border, places less than a pixel outside are mixed from the image and what is around it.
    padded = tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return tf.image.crop_and_resize(padded, boxes, which, size, extrapolation_value=fill)


def _nearest(images: tf.Tensor, transforms: tf.Tensor, fill: float) -> tf.Tensor:
    """Takes whole pixels by their number, two to three times as fast as by TensorFlow's own operation."""
    shape, channels = tf.shape(images), images.shape[-1]
    high, wide = shape[1], shape[2]
    a, b, c, d, e, f = (transforms[:, i, None, None] for i in range(6))
    x, y = tf.range(tf.cast(wide, tf.float32))[None, None], tf.range(tf.cast(high, tf.float32))[None, :, None]
    column, row = (tf.cast(tf.floor(place + 0.5), tf.int32) for place in (a * x + (b * y + c), d * x + (e * y + f)))
    # Without their signs, numbers below 0 are far above the size.
    inside = (tf.bitcast(column, tf.uint32) < tf.cast(wide, tf.uint32)) & (
        tf.bitcast(row, tf.uint32) < tf.cast(high, tf.uint32)
    )
    number = tf.reshape(tf.where(inside, row * wide + column, high * wide), (shape[0], high * wide))
    outside = tf.fill((shape[0], 1, channels), tf.cast(fill, images.dtype))
    pixels = tf.concat([tf.reshape(images, (shape[0], high * wide, channels)), outside], 1)
    made = tf.reshape(tf.gather(pixels, number, batch_dims=1), shape)
    made.set_shape(images.shape)
    return made
