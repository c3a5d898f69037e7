"""Changes of colour and light: pure functions of a batch of images and a strength for each."""

import tensorflow as tf

# Of red, green and blue in what the eye sees as light (ITU-R 601-2).
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)


def grey(images: tf.Tensor) -> tf.Tensor:
    """The light of each pixel, shape (n, h, w, 1); of images with other than three channels, their mean."""
    return tf.linalg.matvec(images, _light(images))[..., None]


def blend(base: tf.Tensor, images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """`base` where the factor is 0, the image where it is 1, further away from `base` above."""
    return base + (images - base) * _each(factor)


def brighten(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies all light: 0 is black, 1 the image."""
    return images * _each(factor)


def contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Spreads values around the mean light: 0 is even grey, 1 the image."""
    return images * _each(factor) + _each(_mean_light(images) * (1.0 - factor))


def _mean_light(images: tf.Tensor) -> tf.Tensor:
    """The mean light of each image, shape (n,); of bytes to the last bit, whatever else is in the batch."""
    channels, shape = images.shape[-1], tf.shape(images)
    # A product is several times as fast as a sum over rows. Sums of bytes are whole numbers, exact in any order: those
    # of a row in float32, up to 65,793 pixels, those of an image in float64.
    rows = tf.reshape(images, (-1, shape[2] * channels)) @ tf.tile(tf.eye(channels), (shape[2], 1))
    sums = tf.reduce_sum(tf.cast(tf.reshape(rows, (shape[0], shape[1], channels)), tf.float64), 1)
    light = tf.cast(_light(images), tf.float64) / tf.cast(shape[1] * shape[2], tf.float64)
    return tf.cast(tf.add_n(tf.unstack(sums * light, axis=1)), tf.float32)


def saturate(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Spreads colours around their light: 0 is grey, 1 the image."""
    # Both parts as one matrix for each image: to spread the light over the channels would take longer.
    channels, shape = images.shape[-1], tf.shape(images)
    own, light = tf.eye(channels), _light(images)[:, None] * tf.ones((1, channels))
    mixing = factor[:, None, None] * (own - light) + light
    return tf.reshape(tf.matmul(tf.reshape(images, (shape[0], -1, channels)), mixing), shape)


def sharpen(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from a smoothed copy: 0 is smooth, 1 the image, above sharper. The outermost pixels stay."""
    # Pillow's SMOOTH filter: all nine neighbours once, the middle four times more.
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (box + 4.0 * images[:, 1:-1, 1:-1]) / 13.0
    change = (inner - images[:, 1:-1, 1:-1]) * (1.0 - _each(factor))
    return images + tf.pad(change, ((0, 0), (1, 1), (1, 1), (0, 0)))


def shift_hue(images: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Turns the colour circle.

    Args:
      images: of three channels.
      turn: part of the whole circle, shape (n,).

    Source: Smith, 1978, doi:10.1145/965139.807361, without the way through HSV.
    """
    shape = tf.shape(images)
    planes = tf.transpose(tf.reshape(images, (shape[0], -1, 3)), (0, 2, 1))
    red, green, blue = planes[:, 0], planes[:, 1], planes[:, 2]
    highest = tf.maximum(tf.maximum(red, green), blue)
    chroma = highest - tf.minimum(tf.minimum(red, green), blue)
    is_red, is_green = red == highest, green == highest
    ahead = tf.where(is_red, green - blue, tf.where(is_green, blue - red, red - green))
    # In sixths of the circle, red at 0, green at 2, blue at 4.
    hue = tf.math.divide_no_nan(ahead, chroma) + tf.where(is_red, 0.0, tf.where(is_green, 2.0, 4.0))
    hue += 6.0 * turn[:, None]
    turned = []
    for channel in (5.0, 3.0, 1.0):
        place = hue + channel
        place -= 6.0 * tf.floor(place / 6.0)
        turned.append(highest - chroma * tf.clip_by_value(tf.minimum(place, 4.0 - place), 0.0, 1.0))
    return tf.reshape(tf.transpose(tf.stack(turned, 1), (0, 2, 1)), shape)


def posterize(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the upper bits of uint8 values, 8 to leave them; shape (n,), int32."""
    mask = tf.bitwise.left_shift(tf.constant(255, tf.int32), 8 - bits)
    return tf.bitwise.bitwise_and(images, tf.cast(_each(tf.bitwise.bitwise_and(mask, 255)), tf.uint8))


def solarize(images: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts the uint8 values that are not below a threshold in [0, 256], shape (n,)."""
    # Without tf.where, which is slow where its condition is of another shape.
    inverted = tf.cast(tf.cast(images, tf.float32) >= _each(threshold), tf.uint8) * tf.constant(255, tf.uint8)
    return tf.bitwise.bitwise_xor(images, inverted)


def autocontrast(images: tf.Tensor) -> tf.Tensor:
    """Spreads each channel over all values of uint8; one that is even stays."""
    # In float64, as Pillow: in float32 7 * (255 / 7) is less than 255.
    values = tf.cast(images, tf.float64)
    low, high = (reduce(values, (1, 2), keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    scale = tf.math.divide_no_nan(tf.constant(255.0, tf.float64), high - low)
    spread = tf.cast(values * scale - low * scale, tf.uint8)
    return tf.where(high > low, spread, images)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Gives each channel's uint8 values an even histogram, as Pillow does."""
    shape = tf.shape(images)
    height, width, channels = shape[1], shape[2], shape[3]
    rows = tf.cast(tf.reshape(tf.transpose(images, (0, 3, 1, 2)), (-1, height * width)), tf.int32)
    histogram = tf.math.bincount(rows, minlength=256, maxlength=256, axis=-1)
    largest = tf.reduce_max(tf.where(histogram > 0, tf.range(256), 0), -1, keepdims=True)
    last = tf.gather(histogram, largest, batch_dims=1)
    step = (height * width - last) // 255
    before = tf.cumsum(histogram, axis=-1, exclusive=True)
    table = tf.clip_by_value((before + step // 2) // tf.maximum(step, 1), 0, 255)
    table = tf.where(step > 0, table, tf.range(256))
    made = tf.gather(tf.cast(table, tf.uint8), rows, batch_dims=1)
    return tf.transpose(tf.reshape(made, (-1, channels, height, width)), (0, 2, 3, 1))


def _light(images: tf.Tensor) -> tf.Tensor:
    """The part of each channel in the light."""
    channels = images.shape[-1]
    return tf.constant(_LUMA if channels == 3 else [1.0 / channels] * channels, images.dtype)


def _each(values: tf.Tensor) -> tf.Tensor:
    """One value for each image, to meet its pixels."""
    return tf.reshape(values, (-1, 1, 1, 1))
