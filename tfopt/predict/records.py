"""Records of TFRecord files as rows."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfopt.config import did_you_mean, require
from tfopt.data.image import Images
from tfopt.data.policy import Policy
from tfopt.data.records import parse_records, read_chunk
from tfopt.predict.images import decoded, image_settings
from tfopt.predict.source import InputFile, Rows, Source, full_shape, stamp
from tfopt.tflite.examples import InputSpec

# What encoded images are called, by TFDS, tfopt and the TensorFlow models.
_USUAL = ("x", "image", "image/encoded")


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource(Source):
    """The records of TFRecord files. After a damaged one nothing of its file can be read.

    Args:
      names: of the feature that is each input.
      features: what is read, as `tf.io.parse_example` takes it.
      compression: of each file: "GZIP", "ZLIB" or "".
      images: how an encoded image becomes the input; None: the features are numbers.
      on_bad: "repair" takes images of other channels.
    """

    kind: ClassVar[str] = "tfrecord"
    names: Mapping[str, str]
    features: Mapping[str, Any]
    compression: tuple[str, ...]
    images: Images | None
    on_bad: Policy

    @property
    def settings(self) -> dict[str, object]:
        """The features, and what becomes of images."""
        return {"features": dict(self.names), **image_settings(self.images)}

    def piece(self, index: int, first: int, last: int) -> Rows:
        """Some records of a file."""
        name = self.files[index].name
        ids = [f"{name}[{row}]" for row in range(first, last)]
        dataset = _records(self.root / name, self.compression[index]).skip(first).take(last - first)
        records, iterator, faults = list[bytes](), dataset.as_numpy_iterator(), dict[int, str]()
        while chunk := read_chunk(iterator, faults, len(records)):
            records += chunk
        if len(records) + len(faults) < len(ids):
            raise RuntimeError(f"{self.root / name} has lost records since the run began: start into another folder")
        good: dict[int, Mapping[str, Any]] = {}
        for place, example in enumerate(parse_records(records, self.features)) if records else ():
            if isinstance(example, str):
                faults[place] = example
            else:
                good[place] = example
        if self.images is not None:
            (feature,), places = self.names.values(), list(good)
            contents = [each[feature] for each in good.values()]
            found = decoded(ids, contents, self.images, self.on_bad, self.specs[0])
            faults |= {places[place]: fault for place, fault in found.faults.items()}
            return Rows(ids, found.inputs, faults)
        inputs = {to: np.stack([each[name] for each in good.values()]) for to, name in self.names.items() if good}
        return Rows(ids, inputs, faults)


def open_records(
    root: pathlib.Path,
    paths: Sequence[pathlib.Path],
    specs: Sequence[InputSpec],
    features: Mapping[str, str],
    images: Images | None,
    on_bad: Policy,
) -> RecordSource:
    """Counts the records, and looks into the first one for what the features hold.

    Args:
      root: the folder that the names are relative to.
      paths: of the files.
      specs: the model's inputs.
      features: of each input, where it is called otherwise.
      images: how encoded images become inputs, where the model takes any.
      on_bad: as in `predict_files`.

    Raises:
      ValueError: no records, no feature of a name or of the size of an input, or a damaged file under "raise".
    """
    files, compression, example = list[InputFile](), list[str](), None
    for path in paths:
        # Before anything is read, so that a change from here on is seen.
        before, kind = stamp(path), _compression(path)
        count, fault = _count(path, kind)
        require(
            not fault or on_bad != "raise",
            f'record {count} of {path} cannot be used: {fault}. Mend it, or pass on_bad="skip"',
        )
        files.append(InputFile(path.relative_to(root).as_posix(), count + bool(fault), before))
        compression.append(kind)
        if example is None and count:
            example = _first_example(path, kind, count)
    if example is None:
        raise ValueError(f"there is no record in {', '.join(map(str, paths))} that is a tf.train.Example with features")
    found = {name: value.WhichOneof("kind") for name, value in example.features.feature.items()}
    names = {spec.name: _name_of(spec, features, found, images is not None, len(specs) == 1) for spec in specs}
    parsed = {name: _feature(spec, name, found[name]) for spec, name in zip(specs, names.values(), strict=True)}
    is_image = [found[name] == "bytes_list" for name in names.values()]
    require(
        not any(is_image) or (len(specs) == 1 and images is not None),
        f"the features {', '.join(names.values())} hold bytes, and the model takes no image: numbers are read as "
        "float_list and int64_list",
    )
    return RecordSource(
        root, tuple(files), tuple(specs), names, parsed, tuple(compression), images if any(is_image) else None, on_bad
    )


def _first_example(path: pathlib.Path, compression: str, count: int) -> tf.train.Example | None:
    """The first of so many records that is an Example with features; what others are is told where they are read."""
    for record in _records(path, compression).take(count).as_numpy_iterator():
        with contextlib.suppress(DecodeError):
            example = tf.train.Example.FromString(record)
            if example.features.feature:
                return example
    return None


def _name_of(
    spec: InputSpec, given: Mapping[str, str], found: Mapping[str, str | None], is_image: bool, is_only: bool
) -> str:
    if spec.name in given:
        name = given[spec.name]
        require(name in found, f"the records have no feature {name!r}: {did_you_mean(name, found)}")
        return name
    usual = [each for each in (spec.name, *(_USUAL if is_only else ())) if each in found]
    encoded = [name for name, kind in found.items() if kind == "bytes_list"] if is_image and is_only else []
    require(
        bool(usual) or len(encoded) == 1,
        f"no feature of the records is called {spec.name!r} as the model's input, they are {', '.join(sorted(found))}: "
        f"say which it is with features={{{spec.name!r}: ...}}, on the command line --features={spec.name}=NAME",
    )
    return usual[0] if usual else encoded[0]


def _feature(spec: InputSpec, name: str, kind: str | None) -> tf.io.FixedLenFeature:
    if kind == "bytes_list":
        return tf.io.FixedLenFeature((), tf.string)
    require(kind is not None, f"the feature {name!r} is empty in the first record")
    dtype = tf.float32 if kind == "float_list" else tf.int64
    return tf.io.FixedLenFeature(full_shape(spec, "TFRecords"), dtype)


def _compression(path: pathlib.Path) -> str:
    """By what the file begins with: a length of 0x8b1f or 0x..78 in a record is told from it by its checksum."""
    with open(path, "rb") as file:
        head = file.read(2)
    candidates = [""] + ["GZIP"] * (head == b"\x1f\x8b") + ["ZLIB"] * (head[:1] == b"\x78")
    for kind in candidates:
        faults: dict[int, str] = {}
        read_chunk(_records(path, kind).take(1).as_numpy_iterator(), faults, 0)
        if not faults:
            return kind
    return ""


def _count(path: pathlib.Path, compression: str) -> tuple[int, str]:
    """How many good records come first, and what is wrong with the next one."""
    dataset = _records(path, compression)
    try:
        return int(dataset.reduce(np.int64(0), lambda count, _: count + 1)), ""
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
        count, iterator, faults = 0, dataset.as_numpy_iterator(), dict[int, str]()
        while chunk := read_chunk(iterator, faults, count):
            count += len(chunk)
        return count, faults[count]


def _records(path: pathlib.Path, compression: str) -> tf.data.Dataset:
    options = tf.data.Options()
    # There is nothing to tune, and TensorFlow 2.21 may wait for its tuning before it lets go of an iterator.
    options.autotune.enabled = False
    return tf.data.TFRecordDataset(str(path), compression).with_options(options)
