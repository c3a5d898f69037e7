"""Examples, written to TFRecord files."""

import contextlib
import os
import pathlib
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.arrays import as_array
from tfopt.data.dataset import SPLITS, Data
from tfopt.files import atomic_path


def write_tfrecord(
    source: Data | tf.data.Dataset,
    folder: str | os.PathLike[str],
    shards: int = 1,
    compression: Literal["GZIP", "ZLIB"] | None = None,
) -> dict[str, tf.io.FixedLenFeature]:
    """Writes examples to TFRecord files in a new folder, which appears when all are written.

    Integers are written as int64, other numbers as float32, and images, uint8 of 1, 3 or 4 channels, as PNG, to be read
    with `image_size`. The files are `train-00000-of-00001.tfrecord` and so on for each split of `Data`, before
    augmentation and `transform`; `examples-…` for a dataset.

    Args:
      source: `Data`, or a dataset of single examples `(x, y)` or `(x, y, sample_weight)`.
      folder: must not exist.
      shards: files for each split; examples go to them in turn.
      compression: "GZIP", "ZLIB", or None.

    Returns:
      The features for `from_tfrecord`: "x", or the names of a dict of inputs; "y"; and "weight".

    Raises:
      FileExistsError: the folder is there.
      ValueError: examples without a full shape, inputs that are a tuple or are called "y" or "weight" beside those, or
        numbers that the files do not hold.
    """
    require(isinstance(shards, int) and shards >= 1, f"shards must be at least 1, received {shards!r}")
    folder = pathlib.Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: choose another folder, or remove it")
    whole = {"examples": source} if not isinstance(source, Data) else {each: source.examples(each) for each in SPLITS}
    specs = _by_name(next(iter(whole.values())).element_spec)
    features = {name: _feature(name, spec) for name, spec in specs.items()}
    options = tf.io.TFRecordOptions(compression_type=compression or "")
    with atomic_path(folder) as temporary, contextlib.ExitStack() as stack:
        temporary.mkdir()
        for split, examples in whole.items():
            names = [f"{split}-{shard:05d}-of-{shards:05d}.tfrecord" for shard in range(shards)]
            writers = [stack.enter_context(tf.io.TFRecordWriter(str(temporary / name), options)) for name in names]
            for number, example in enumerate(examples.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()):
                found = {name: _encoded(name, as_array(part), specs[name]) for name, part in _by_name(example).items()}
                record = tf.train.Example(features=tf.train.Features(feature=found))
                writers[number % shards].write(record.SerializeToString())
        stack.close()
    return features


def _by_name(example: Any) -> dict[str, Any]:
    require(
        isinstance(example, tuple) and len(example) in (2, 3) and not isinstance(example[0], tuple),
        f"examples must be (x, y) or (x, y, sample_weight), x one tensor or a dict of them; received {example}",
    )
    x = example[0] if isinstance(example[0], dict) else {"x": example[0]}
    others = dict(zip(("y", "weight"), example[1:], strict=False))
    for name in others:
        require(
            name not in x, f"the inputs are called {', '.join(x)}: {name!r} is the name of something else, rename it"
        )
    return {**x, **others}


def _is_image(spec: tf.TensorSpec) -> bool:
    return spec.dtype == tf.uint8 and spec.shape.rank == 3 and spec.shape[-1] in (1, 3, 4)


def _feature(name: str, spec: tf.TensorSpec) -> tf.io.FixedLenFeature:
    if _is_image(spec):
        return tf.io.FixedLenFeature((), tf.string)
    require(spec.shape.is_fully_defined(), f"{name!r} must have a full shape, it has {spec.shape}: pad or crop it")
    kind = tf.string if spec.dtype == tf.string else tf.float32 if spec.dtype.is_floating else tf.int64
    known = kind != tf.int64 or spec.dtype.is_integer or spec.dtype.is_bool
    require(known, f"{name!r} must be numbers or text, it is {spec.dtype.name}: split it into real parts")
    return tf.io.FixedLenFeature(tuple(spec.shape), kind)


def _encoded(name: str, part: np.ndarray, spec: tf.TensorSpec) -> tf.train.Feature:
    if _is_image(spec):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[tf.io.encode_png(part).numpy()]))
    values = part.ravel()
    if spec.dtype == tf.string:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values.tolist()))
    if spec.dtype.is_floating:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if values.dtype == np.uint64 and values.size:
        require(int(values.max()) < 2**63, f"{name!r} holds {values.max()}, more than int64 does")
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values.astype("int64")))
