"""Encoded images: looked at before training, decoded and resized in it."""

import concurrent.futures
import dataclasses
import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import tensorflow as tf

from tfopt.config import require
from tfopt.data.dataset import SPLITS, Data, Scaled
from tfopt.data.policy import Policy
from tfopt.progress import current_bar

# What TensorFlow decodes.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF")
_MODES = {1: ("L", "1"), 3: ("RGB",), 4: ("RGBA",)}
# More pixels than a camera has: a decompression bomb.
_MOST_PIXELS = 100_000_000

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Images:
    """How encoded images become inputs of one size.

    Args:
      size: (height, width) of what the model receives.
      channels: 1, 3 or 4.
      value_range: what pixel values 0 and 255 become.
      cache: keep the resized images in memory, as uint8.

    Raises:
      ValueError: another number of channels, or no size.
    """

    size: tuple[int, int]
    channels: int = 3
    value_range: tuple[float, float] = (0.0, 1.0)
    cache: bool = True

    def __post_init__(self) -> None:
        require(self.channels in _MODES, f"channels must be 1, 3 or 4, received {self.channels!r}")
        require(
            len(self.size) == 2 and all(isinstance(each, int) and each >= 1 for each in self.size),
            f"image_size must be (height, width) in pixels, received {self.size!r}",
        )

    def fault(self, content: bytes, on_bad: Policy) -> str:
        """Why an encoded image cannot be used, "" where it can. Decoding repairs its channels."""
        found = self._look(content, on_bad)
        return found if isinstance(found, str) else ""

    def load(self, content: bytes, on_bad: Policy) -> np.ndarray | str:
        """What `decode` makes of an encoded image, or why it cannot be used."""
        found = self._look(content, on_bad)
        return found if isinstance(found, str) else self._resized(found).numpy()

    def decode(self, content: tf.Tensor) -> tf.Tensor:
        """The image as uint8, shape (height, width, channels)."""
        image = tf.io.decode_image(content, self.channels, expand_animations=False)
        image.set_shape((None, None, self.channels))
        return self._resized(image)

    def _resized(self, image: tf.Tensor) -> tf.Tensor:
        resized = tf.image.resize(image, self.size, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)

    def _look(self, content: bytes, on_bad: Policy) -> tf.Tensor | str:
        """The decoded image, or why it cannot be used."""
        found = _decoded(content, self.channels)
        if isinstance(found, str):
            return found
        with PIL.Image.open(io.BytesIO(content)) as image:
            kind, mode, expected = image.format, image.mode, _MODES[self.channels]
        # The palette of a GIF is always decoded as RGB.
        if mode in expected or kind == "GIF" or on_bad == "repair":
            return found
        return f"channels of mode {mode}, where {' or '.join(expected)} is expected"

    def of(self, data: Data, load: Callable[..., tuple[Any, ...]]) -> Data:
        """Data of images, from data whose elements `load` turns into (encoded image, label)."""

        def read(*element: Any) -> tuple[Any, ...]:
            content, label = load(*element)
            return self.decode(content), label

        data = dataclasses.replace(data, read=read, transform=Scaled(self.value_range))
        return cached(data) if self.cache else data


def cached(data: Data) -> Data:
    """The same data, read once and kept in memory from then on."""
    return dataclasses.replace(data, splits={split: data.examples(split).cache() for split in SPLITS}, read=None)


def look_at(items: Sequence[Item], look: Callable[[Item], Found], enough: Callable[[Found], bool]) -> list[Found]:
    """What `look` finds at each item, on all processors; up to the first find that is `enough`."""
    bar, found = current_bar(len(items)), []
    # Of all threads at once: the filters of warnings are one for the process.
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # Pillow's own limit only warns; ours is in `_decoded`.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        for number, each in enumerate(pool.map(look, items), 1):
            bar.update(number)
            found.append(each)
            if enough(each):
                pool.shutdown(cancel_futures=True)
                break
    return found


def _decoded(content: bytes, channels: int) -> tf.Tensor | str:
    """The image in the bytes, or why they cannot be decoded."""
    if not content:
        return "it is empty"
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            kind, (width, height) = image.format, image.size
    except PIL.Image.DecompressionBombError:
        return f"it has more than {_MOST_PIXELS:,} pixels"
    except PIL.UnidentifiedImageError:
        return "it is no image"
    except (OSError, SyntaxError, ValueError) as error:
        return f"it is no image ({error})" if str(error) else "it is no image"
    if kind not in _FORMATS:
        return f"it is {kind}, and only {', '.join(_FORMATS)} are read"
    if width * height > _MOST_PIXELS:
        return f"it has {width:,} x {height:,} pixels, more than {_MOST_PIXELS:,}"
    try:
        return tf.io.decode_image(content, channels, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        reason = str(error.message).splitlines()[0].split("}} ")[-1].partition(" [Op")[0]
        return f"it is damaged ({reason[:120]})"
