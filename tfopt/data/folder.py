"""Folders of images by class, as `Data`; every file is looked at before any is trained on."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import PIL.Image
import tensorflow as tf

from tfopt.config import require, require_fraction
from tfopt.data.dataset import SPLITS, Data, scaled_to
from tfopt.data.split import draw
from tfopt.progress import current_bar

Policy = Literal["raise", "skip", "repair"]
POLICIES = ("raise", "skip", "repair")
# What TensorFlow decodes.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF")
_MODES = {1: ("L", "1"), 3: ("RGB",), 4: ("RGBA",)}
# More pixels than a camera has: a decompression bomb.
_MOST_PIXELS = 100_000_000
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclasses.dataclass(frozen=True)
class _File:
    """An image file: its class, what it holds as a digest, and why it cannot be used, "" where it can.

    `can_be_repaired`: all that is wrong is the number of channels.
    """

    path: pathlib.Path
    label: int
    digest: str = ""
    fault: str = ""
    can_be_repaired: bool = False


def from_folder(
    path: str | os.PathLike[str],
    image_size: tuple[int, int],
    *,
    channels: int = 3,
    on_bad: Policy = "raise",
    batch_size: int = 64,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    cache: bool = True,
) -> Data:
    """Loads a folder of images, a folder for each class, as `Data`.

    `path/cat/1.jpg`; or, with the splits given, `path/train/cat/1.jpg`, `path/validation/…` (or val) and `path/test/…`.
    JPEG, PNG, BMP and GIF (the first picture). All are resized to one size. Splits are drawn class by class, and never
    part equal files.

    Args:
      path: of the folder.
      image_size: (height, width) of what the model receives.
      channels: 1, 3 or 4.
      on_bad: what to do with files that are empty, damaged, no image, too large or of another number of channels:
        "raise"; "skip" them; or "repair" the channels and skip the others. `Data.skipped` names each with the reason.
      batch_size: examples a training step.
      validation_fraction: share of each class to hold out, in (0, 1), where there is no folder for it.
      test_fraction: the same.
      value_range: what pixel values 0 and 255 become.
      seed: fixes the splits and the order of every epoch.
      cache: keep the resized images in memory, as uint8.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a bad file under "raise", no images, a class without enough of them, or classes that differ between
        the splits.

    Source of the layout: `keras.utils.image_dataset_from_directory`.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for number in range(20):
    ...     _ = (folder / "ab"[number % 2]).mkdir(exist_ok=True)
    ...     image = tf.io.encode_png(tf.fill((4, 4, 3), tf.cast(number, tf.uint8)))
    ...     _ = (folder / "ab"[number % 2] / f"{number}.png").write_bytes(image.numpy())
    >>> data = from_folder(folder, (8, 8))
    >>> data.sizes, data.class_names, data.input_shape
    ({'train': 16, 'validation': 2, 'test': 2}, ('a', 'b'), (8, 8, 3))
    """
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one with a folder of images for each class")
    require(on_bad in POLICIES, f"on_bad must be one of {', '.join(POLICIES)}, received {on_bad!r}")
    require(channels in _MODES, f"channels must be 1, 3 or 4, received {channels!r}")
    require(
        len(image_size) == 2 and all(isinstance(each, int) and each >= 1 for each in image_size),
        f"image_size must be (height, width) in pixels, received {image_size!r}",
    )
    fractions = {"validation": validation_fraction, "test": test_fraction}
    for name, fraction in fractions.items():
        require_fraction(f"{name}_fraction", fraction)
    given = _given_splits(folder)
    class_names = _class_names(given.values())
    parts, skipped = {}, {}
    for split, root in given.items():
        good, bad = _scan(root, class_names, channels, on_bad)
        skipped.update({str(each.path.relative_to(folder)): each.fault for each in bad})
        parts[split] = good
    missing = {split: fractions[split] for split in ("validation", "test") if split not in parts}
    if missing:
        parts |= _draw_by_class(parts["train"], missing, class_names, seed)
    paths: dict[str, tf.data.Dataset] = {split: _paths(parts[split]) for split in SPLITS}
    read = functools.partial(_read, image_size, channels)
    if cache:
        paths = {split: each.map(read, tf.data.AUTOTUNE, deterministic=True).cache() for split, each in paths.items()}
    return Data(
        paths,
        name=folder.resolve().name,
        class_names=class_names,
        batch_size=batch_size,
        seed=seed,
        transform=scaled_to(value_range),
        skipped=skipped,
        read=None if cache else read,
    )


def _given_splits(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of the splits; that of all images, as "train", where there are none."""
    found = {
        split: folder / name for split, names in _SPLIT_FOLDERS.items() for name in names if (folder / name).is_dir()
    }
    return found if "train" in found else {"train": folder}


def _class_names(roots: Iterable[pathlib.Path]) -> tuple[str, ...]:
    """The folders with images, the same in all splits."""
    names: tuple[str, ...] | None = None
    for root in roots:
        own = tuple(sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")))
        require(bool(own), f"{root} has no folders: put the images of each class into a folder of its own")
        require(names in (None, own), f"{root} has the classes {', '.join(own)}, other splits {', '.join(names or ())}")
        names = own
    return names or ()


def _scan(
    root: pathlib.Path, class_names: Sequence[str], channels: int, on_bad: Policy
) -> tuple[list[_File], list[_File]]:
    """The good files and those left out, both in the order of their names."""
    paths = [
        (path, label)
        for label, name in enumerate(class_names)
        for path in sorted((root / name).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    require(bool(paths), f"there are no files in the folders of {root}")
    bar, good, bad = current_bar(len(paths)), [], []
    # Of all threads at once: the filters of warnings are one for the process.
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # Pillow's own limit only warns; ours is in `_look`.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        for number, found in enumerate(pool.map(lambda each: _look(each[0], each[1], channels), paths), 1):
            bar.update(number)
            if not found.fault or (on_bad == "repair" and found.can_be_repaired):
                good.append(found)
                continue
            if on_bad == "raise":
                pool.shutdown(cancel_futures=True)
                way_out = 'Mend it, or pass on_bad="skip" or "repair"'
                raise ValueError(f"{found.path} cannot be used: {found.fault}. {way_out}")
            bad.append(found)
    require(
        bool(good), f"none of the {len(paths)} files in {root} can be used; the first: {bad[0].fault if bad else ''}"
    )
    return good, bad


def _look(path: pathlib.Path, label: int, channels: int) -> _File:
    """Reads a file and decodes it once; the fault is told, not raised."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return _File(path, label, fault=f"it cannot be read ({error.strerror})")
    found = _File(path, label, hashlib.sha256(content).hexdigest())
    if fault := _damage(content, channels):
        return dataclasses.replace(found, fault=fault)
    with PIL.Image.open(io.BytesIO(content)) as image:
        mode, expected = image.mode, _MODES[channels]
    if mode in expected:
        return found
    fault = f"channels of mode {mode}, where {' or '.join(expected)} is expected"
    return dataclasses.replace(found, fault=fault, can_be_repaired=True)


def _damage(content: bytes, channels: int) -> str:
    """Why the bytes cannot be decoded; "" where they can."""
    if not content:
        return "it is empty"
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            kind, (width, height) = image.format, image.size
    except PIL.Image.DecompressionBombError:
        return f"it has more than {_MOST_PIXELS:,} pixels"
    except (OSError, SyntaxError, ValueError) as error:
        return f"it is no image ({error})" if str(error) else "it is no image"
    if kind not in _FORMATS:
        return f"it is {kind}, and only {', '.join(_FORMATS)} are read"
    if width * height > _MOST_PIXELS:
        return f"it has {width:,} x {height:,} pixels, more than {_MOST_PIXELS:,}"
    try:
        tf.io.decode_image(content, channels, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        return f"it is damaged ({str(error).splitlines()[0][:120]})"
    return ""


def _draw_by_class(
    files: Sequence[_File], fractions: Mapping[str, float], class_names: Sequence[str], seed: int
) -> dict[str, list[_File]]:
    """Splits drawn from each class alike; files of equal content are in one split."""
    classes: dict[str, str] = {}
    for each in files:
        classes.setdefault(each.digest, class_names[each.label])
    drawn = draw(len(classes), fractions, seed, labels=np.array(list(classes.values()), object))
    digests = list(classes)
    split_of = {digests[row]: split for split, rows in drawn.items() for row in rows}
    parts: dict[str, list[_File]] = {split: [] for split in drawn}
    for each in files:
        parts[split_of[each.digest]].append(each)
    return parts


def _paths(files: Sequence[_File]) -> tf.data.Dataset:
    labels = np.array([each.label for each in files])
    return tf.data.Dataset.from_tensor_slices(([str(each.path) for each in files], labels))


def _read(image_size: tuple[int, int], channels: int, path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    image = tf.io.decode_image(tf.io.read_file(path), channels, expand_animations=False)
    image.set_shape((None, None, channels))
    resized = tf.image.resize(image, image_size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8), label
