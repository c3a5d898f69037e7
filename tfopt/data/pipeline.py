"""`Pipeline`: how the pipelines of `Data` use threads, memory, disks, devices and other processes."""

import dataclasses
import fcntl
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfopt.config import Config, require
from tfopt.files import atomic_path, remove

Splits = Mapping[str, tf.data.Dataset]
# What a TFRecord has before and after its bytes: their length, and two checksums.
_FRAME = 16
# Elements that are looked at together.
_CHUNK = 256


@dataclasses.dataclass(frozen=True, repr=False)
class Pipeline(Config):
    """How batches are made; what is in them stays the same.

    Args:
      threads: of the pipeline's own; None: those that it shares with everything else in TensorFlow.
      deterministic: training examples in the order that the seed fixes. False is faster where some take longer to read
        than others: each epoch has the same examples, but `training_batches` is not reproducible any more.
      cache: of what `Data.read` makes: "none"; "memory"; or a folder for files, complete before the first batch. They
        are read from start to end, so that up to 100,000 examples wait in memory to be shuffled.
      snapshot: a folder; what `Data.read` makes is written there once, complete before the first batch, and then read
        row by row in the shuffled order, for sets larger than memory. It is found again by the elements of the splits
        and some of the examples: delete it where files of the set were changed. Iterators over it cannot be saved.
      prefetch: batches made ahead, at least 0; -1: tf.data chooses.
      device: where training batches are handed over, such as "GPU:0"; without such a device they stay in the memory
        of the host, and the log says so. Not with several replicas, which Keras feeds itself.
      service: address of a tf.data service such as "grpc://localhost:5050", whose workers make the training batches;
        see `tfopt.data.serve`. Needs deterministic=False: batches come in the order in which they are ready.

    Raises:
      ValueError: an argument out of range, or options that exclude each other.

    >>> Pipeline(threads=4, cache="memory")
    Pipeline(threads=4, cache='memory')
    """

    threads: int | None = None
    deterministic: bool = True
    cache: str | os.PathLike[str] = "none"
    snapshot: str | os.PathLike[str] | None = None
    prefetch: int = -1
    device: str | None = None
    service: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("prefetch", -1)):
            value = getattr(self, name)
            require(
                value is None or (isinstance(value, int) and value >= least),
                f"{name} must be a whole number of at least {least}, received {value!r}",
            )
        require(bool(self.cache), 'cache must be "none", "memory" or a folder, received an empty name')
        require(
            self.cache == "none" or self.snapshot is None,
            f"cache={str(self.cache)!r} and a snapshot keep the same examples twice: choose one",
        )
        if self.service is not None:
            require(
                not self.deterministic,
                "the workers of a service hand over batches in the order in which they are ready: pass "
                "deterministic=False to agree to that. Each epoch has the same batches",
            )
            require(
                self.cache == "none", "workers of a service do not share a cache: use a snapshot on a disk they share"
            )

    def keep(self, splits: Splits, read: Callable[..., Any] | None, name: str) -> tuple[Splits, Any]:
        """The splits and what reads them, with what the cache or the snapshot holds in their place."""
        if self.snapshot is not None:
            return _snapshot(pathlib.Path(self.snapshot).expanduser(), splits, read, name)
        if self.cache == "none":
            return splits, read
        if self.cache == "memory":
            return {split: read_from(part, read).cache() for split, part in splits.items()}, None
        return _cache(pathlib.Path(self.cache).expanduser(), splits, read, name), None

    def finish(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """`batches` with threads and prefetch."""
        if self.threads is not None:
            options = tf.data.Options()
            options.threading.private_threadpool_size = self.threads
            batches = batches.with_options(options)
        return batches.prefetch(self.prefetch)

    def hand_over(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """`batches` on the device."""
        if self.device is None:
            return batches
        if not any(each.name.endswith(self.device) for each in tf.config.list_logical_devices()):
            names = ", ".join(each.name.removeprefix("/device:") for each in tf.config.list_logical_devices())
            logging.warning(
                "there is no device %s here, only %s: batches stay in the memory of the host", self.device, names
            )
            return batches
        on_device = batches.apply(tf.data.experimental.prefetch_to_device(self.device))
        # It does not know its size, without which Keras warns of the end of each epoch; no other step may follow.
        on_device.cardinality = batches.cardinality
        return on_device


def read_from(elements: tf.data.Dataset, read: Callable[..., Any] | None, ordered: bool = True) -> tf.data.Dataset:
    """What `read` makes of each element."""
    if read is None:
        return elements
    return elements.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=ordered)


def _cache(folder: pathlib.Path, splits: Splits, read: Callable[..., Any] | None, name: str) -> Splits:
    """Splits that read tf.data's cache files, which are written first where they are missing."""
    examples = {split: read_from(part, read) for split, part in splits.items()}
    with _written(folder / f"{name}-{_key(splits, read)}") as (place, temporary):
        if temporary is not None:
            temporary.mkdir()
            for split, part in examples.items():
                _drain(part.cache(str(temporary / split)))
    return {split: part.cache(str(place / split)) for split, part in examples.items()}


def _snapshot(
    folder: pathlib.Path, splits: Splits, read: Callable[..., Any] | None, name: str
) -> tuple[Splits, Callable[..., Any]]:
    """Splits of places in a file of examples, and what reads an example there."""
    examples = {split: read_from(part, read) for split, part in splits.items()}
    spec = examples["train"].element_spec
    with _written(folder / f"{name}-{_key(splits, read)}") as (place, temporary):
        if temporary is not None:
            temporary.mkdir()
            _write_records(temporary, examples)
    places = np.load(place / "places.npz")
    read_one = _record_reader(str(place / "examples.tfrecord"), spec)
    return {split: tf.data.Dataset.from_tensor_slices((places[split],)) for split in splits}, read_one


def _write_records(folder: pathlib.Path, examples: Splits) -> None:
    def packed(*example: Any) -> tf.Tensor:
        return tf.io.serialize_tensor([tf.io.serialize_tensor(part) for part in tf.nest.flatten(example)])

    places: dict[str, Any] = {}
    position = 0
    with tf.io.TFRecordWriter(str(folder / "examples.tfrecord")) as file:
        for split, part in examples.items():
            starts = []
            for record in part.map(packed, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
                file.write(record)
                starts.append(position)
                position += len(record) + _FRAME
            places[split] = np.array(starts, np.int64)
    np.savez(folder / "places.npz", **places)


def _record_reader(path: str, spec: Any) -> Callable[[tf.Tensor], Any]:
    """What reads the example at a place of a file, in TensorFlow alone: workers of a service can run it."""

    def read(place: tf.Tensor) -> Any:
        records = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path], compression_type="", buffer_size=0, byte_offsets=place[None]
        )
        record = tf.data.experimental.from_variant(records, tf.TensorSpec((), tf.string)).take(1).get_single_element()
        parts = tf.io.parse_tensor(record, tf.string)
        flat = []
        for number, each in enumerate(tf.nest.flatten(spec)):
            part = tf.io.parse_tensor(parts[number], each.dtype)
            part.set_shape(each.shape)
            flat.append(part)
        return tf.nest.pack_sequence_as(spec, flat)

    return read


@contextmanager
def _written(place: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
    """`place`, and where to write what comes to lie there; None where it was written before.

    It appears complete or not at all. A second process waits for the first one.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.is_dir():
            yield place, None
            return
        # Of a run that was killed: nobody else writes under this lock.
        for leftover in place.parent.glob(f".{place.name}.*.tmp"):
            remove(leftover)
        with atomic_path(place) as temporary:
            yield place, temporary


def _key(splits: Splits, read: Callable[..., Any] | None) -> str:
    """Changes with the elements of the splits and with some of the examples that `read` makes of them."""
    digest = hashlib.sha256()
    for split, part in splits.items():
        size = int(part.cardinality())
        some = read_from(part.shard(max(1, size // 16), 0), read)
        digest.update(repr((split, size, some.element_spec)).encode())
        for element in itertools.chain(part.batch(_CHUNK), some if read is not None else ()):
            for each in tf.nest.flatten(element):
                digest.update(tf.io.serialize_tensor(each).numpy())
    return digest.hexdigest()[:16]


def _drain(dataset: tf.data.Dataset) -> None:
    dataset.reduce(tf.constant(0, tf.int64), lambda seen, *_: seen + 1).numpy()
