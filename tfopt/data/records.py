"""TFRecord files of `tf.train.Example`s, as `Data`."""

import dataclasses
import glob
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt.config import did_you_mean, require
from tfopt.data.dataset import SPLITS, Data
from tfopt.data.image import Images, cached, look_at
from tfopt.data.policy import Policy, check_policy
from tfopt.data.split import draw

Patterns = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
# Files read at once, and records taken from each in turn: fixed numbers, since the order follows from them.
_FILES, _BLOCK = 8, 16
# Records looked at together.
_BATCH = 256


def from_tfrecord(
    paths: Patterns | Mapping[str, Patterns],
    features: Mapping[str, Any],
    x: str | Sequence[str],
    y: str,
    *,
    compression: Literal["GZIP", "ZLIB"] | None = None,
    groups: str | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    stratify: bool = False,
    on_bad: Policy = "raise",
    image_size: tuple[int, int] | None = None,
    channels: int = 3,
    value_range: tuple[float, float] = (0.0, 1.0),
    cache: bool = True,
    **options: Any,
) -> Data:
    """Makes `Data` of TFRecord files.

    The files are read once before training: records are counted and looked at, and labels kept in memory. Then they
    stream, several files at once, always in the same order. Each split reads all of its files; so give large sets a
    file or more for each split.

    Args:
      paths: paths or patterns such as "train-*.tfrecord"; or these by split: "train" and, as far as there are any,
        "validation" and "test". Records that stand in two of them are found by `tfopt.data.clean`.
      features: what a record holds, as `tf.io.parse_single_example` takes it: `tf.io.FixedLenFeature`s by name.
      x: the feature that is the input; several become a dict of inputs.
      y: the feature that is the label or target.
      compression: "GZIP", "ZLIB", or None.
      groups: the feature of what must stay in one split, such as subjects.
      validation_fraction: share of the training records to draw, in (0, 1), where there is no such split.
      test_fraction: the same.
      stratify: draw the share from each class of y.
      on_bad: what to do with damaged records, those that do not hold the features, and images that cannot be used:
        "raise"; "skip" them; or "repair" the channels of images and skip the others. After a record whose bytes are
        damaged nothing of its file can be read. `Data.skipped` names each by its file and number, from 0.
      image_size: (height, width): x is an encoded image (JPEG, PNG, BMP or GIF), and is resized.
      channels: of images: 1, 3 or 4.
      value_range: of images: what pixel values 0 and 255 become.
      cache: keep the examples in memory, images resized as uint8.
      **options: further fields of `Data`, such as `batch_size`, `seed`, `name` and `class_names`.

    Raises:
      FileNotFoundError: no file of a path or pattern.
      ValueError: an unknown feature, a bad record under "raise", or no good ones.

    >>> import tempfile
    >>> from tfopt.data.write_records import write_tfrecord
    >>> folder = pathlib.Path(tempfile.mkdtemp(), "set")
    >>> examples = tf.data.Dataset.from_tensor_slices((np.zeros((20, 3), "float32"), np.arange(20) % 2))
    >>> features = write_tfrecord(examples, folder)
    >>> features["x"]
    FixedLenFeature(shape=(3,), dtype=tf.float32, default_value=None)
    >>> data = from_tfrecord(folder / "*.tfrecord", features, "x", "y", batch_size=8)
    >>> data.sizes, data.input_shape
    ({'train': 16, 'validation': 2, 'test': 2}, (3,))
    """
    check_policy(on_bad)
    images = None if image_size is None else Images(image_size, channels, value_range, cache)
    inputs = [x] if isinstance(x, str) else list(x)
    require(bool(inputs), "x must name a feature, or several")
    for name in (*inputs, y, *([groups] if groups else [])):
        require(name in features, f"there is no feature {name!r}: {did_you_mean(name, features)}")
    for name, feature in features.items():
        require(
            isinstance(feature, tf.io.FixedLenFeature),
            f"the feature {name!r} must be a tf.io.FixedLenFeature: examples have one shape; received {feature!r}",
        )
    require(images is None or isinstance(x, str), "image_size is for x with the name of one feature, an encoded image")
    for name in (y, *([groups] if groups else [])):
        require(features[name].dtype != tf.string or name == groups, f"the labels {name!r} are text: write numbers")
        shape = features[name].shape
        require(np.prod(shape) > 0, f"{name!r} must hold a value, its shape is {shape}")
    given = dict(paths) if isinstance(paths, Mapping) else {"train": paths}
    require(
        set(given) <= set(SPLITS) and "train" in given,
        f"paths must be given by {', '.join(SPLITS)} ('train' at least), received {', '.join(given)}",
    )

    def look(path: str) -> _File:
        return _look(path, features, compression, (y, groups), on_bad, (images, inputs[0]))

    parts, skipped = dict[str, tuple[list[_File], np.ndarray]](), dict[str, str]()
    for split, patterns in given.items():
        files = look_at(_matching(patterns), look, lambda each: on_bad == "raise" and bool(each.faults))
        for each in files:
            for number, fault in each.faults.items():
                require(
                    on_bad != "raise",
                    f'record {number} of {each.path} cannot be used: {fault}. Mend it, or pass on_bad="skip"',
                )
                skipped[f"{each.path}[{number}]"] = fault
        good = np.flatnonzero(np.concatenate([each.is_good for each in files]))
        require(good.size > 0, f"there are no good records in the {split} files {patterns}; bad ones: {len(skipped)}")
        parts[split] = (files, good)
    fractions = {"validation": validation_fraction, "test": test_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if split not in parts}
    files, good = parts["train"]
    labels, own = (np.concatenate([each.kept[place] for each in files]) for place in (0, 1))
    drawn = draw(len(good), missing, options.get("seed", 0), labels if stratify else None, own if groups else None)
    parts |= {split: (files, good[rows]) for split, rows in drawn.items()}
    data = Data(
        {split: _records(*parts[split], compression) for split in SPLITS},
        **{"name": pathlib.Path(files[0].path).absolute().parent.name, **options},
        skipped=skipped,
    )

    def parsed(record: tf.Tensor) -> tuple[Any, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return example[x] if isinstance(x, str) else {name: example[name] for name in inputs}, example[y]

    if images is not None:
        return images.of(data, parsed)
    data = dataclasses.replace(data, read=parsed)
    return cached(data) if cache else data


@dataclasses.dataclass(frozen=True)
class _File:
    """A file: which of its records are good, up to a damaged one; the faults; y and the groups of the good ones."""

    path: str
    is_good: np.ndarray
    faults: Mapping[int, str]
    kept: tuple[np.ndarray, np.ndarray]


def _matching(patterns: Patterns) -> list[str]:
    """The files, each once, in rising order."""
    several = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
    if not several:
        raise FileNotFoundError("paths name no file")
    found: set[str] = set()
    for pattern in (os.path.expanduser(each) for each in several):
        files = [
            each for each in ([pattern] if os.path.isfile(pattern) else glob.glob(pattern)) if os.path.isfile(each)
        ]
        if not files:
            raise FileNotFoundError(f"there is no file {pattern}")
        found.update(files)
    return sorted(found)


def _look(
    path: str,
    features: Mapping[str, Any],
    compression: str | None,
    kept: tuple[str, str | None],
    on_bad: Policy,
    picture: tuple[Images | None, str],
) -> _File:
    """Reads a file once."""
    faults, number = dict[int, str](), 0
    values: tuple[list[Any], list[Any]] = ([], [])
    records = tf.data.TFRecordDataset(path, compression).as_numpy_iterator()
    while chunk := read_chunk(records, faults, number):
        for place, example in enumerate(parse_records(chunk, features), number):
            fault = example if isinstance(example, str) else _picture_fault(example, picture, on_bad)
            if fault or isinstance(example, str):
                faults[place] = fault
                continue
            for own, name in zip(values, kept, strict=True):
                if name is not None:
                    own.append(np.ravel(example[name])[0])
        number += len(chunk)
        if faults and on_bad == "raise":
            break
    is_good = ~np.isin(np.arange(number), list(faults))
    # As objects: a file without good records has no type.
    return _File(
        path, is_good, dict(sorted(faults.items())), (np.array(values[0], object), np.array(values[1], object))
    )


def read_chunk(records: Iterator[bytes], faults: dict[int, str], number: int) -> list[bytes]:
    """The next records, up to a damaged one, which is put down."""
    chunk: list[bytes] = []
    try:
        for record in itertools.islice(records, _BATCH):
            chunk.append(record)
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        hint = "; is it compressed in that way?" if number + len(chunk) == 0 else ""
        reason = str(error).partition(" [Op")[0].splitlines()[0].split("} ")[-1][:120]
        faults[number + len(chunk)] = f"it is damaged, and what follows it in its file is lost ({reason}){hint}"
    return chunk


def parse_records(chunk: Sequence[bytes], features: Mapping[str, Any]) -> Iterator[dict[str, Any] | str]:
    """Each record as its features, or why it cannot be that."""
    try:
        whole = {name: part.numpy() for name, part in tf.io.parse_example(chunk, features).items()}
    except tf.errors.InvalidArgumentError as error:
        if len(chunk) == 1:
            yield f"it does not hold the features ({str(error).splitlines()[0].split('} ')[-1][:160]})"
            return
        for record in chunk:
            yield from parse_records([record], features)
        return
    for row in range(len(chunk)):
        yield {name: part[row] for name, part in whole.items()}


def _picture_fault(example: Mapping[str, Any], picture: tuple[Images | None, str], on_bad: Policy) -> str:
    images, name = picture
    if images is None:
        return ""
    return images.fault(example[name], on_bad)


def _records(files: Sequence[_File], rows: np.ndarray, compression: str | None) -> tf.data.Dataset:
    """These of the records, counted over all files; in a fixed order, from several files in turn."""
    sizes = np.array([len(each.is_good) for each in files])
    is_chosen = tf.constant(np.isin(np.arange(sizes.sum()), rows))

    def numbered(path: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(path, compression).take(size).enumerate(start)

    of_files = tf.data.Dataset.from_tensor_slices(([each.path for each in files], np.cumsum(sizes) - sizes, sizes))
    together = of_files.interleave(
        numbered, cycle_length=_FILES, block_length=_BLOCK, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    chosen = together.filter(lambda row, _: is_chosen[row]).map(lambda _, record: record)
    return chosen.apply(tf.data.experimental.assert_cardinality(len(rows)))
