"""`Data`: the splits of one task, and the pipelines that feed training and evaluation from them."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt.augment import Augmentation, chain
from tfopt.augment.seeds import fold
from tfopt.config import require
from tfopt.data.arrays import as_array
from tfopt.data.distribute import batches_by_number, check_service, check_workers, distribute
from tfopt.data.pipeline import Pipeline, read_from
from tfopt.data.split import draw

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


# Compared and hashed by identity: datasets have no cheap equality.
@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Examples of one task, split in three, with what tfopt must know about them.

    Args:
      splits: "train", "validation" and "test", each a `tf.data.Dataset` of single examples `(x, y)` or
        `(x, y, sample_weight)`, in a fixed order and of known size.
      name: what reports call it.
      class_names: one for each class of integer labels; empty for other tasks.
      batch_size: examples a training step, at least 1.
      seed: fixes the order of every epoch.
      transform: applied to each batch, `transform(*batch) -> batch`, after the cache and the shuffle, so that
        small types such as uint8 are what is kept in memory. A pure function.
      augment: augmentations of training images, in order, before `transform`; other in every epoch, and fixed by the
        seed.
      skipped: what was left out of the data when they were read, with the reason.
      prepared: what `prepare` learned, in order: each is a function of a batch of inputs, to apply wherever the model
        is used.
      read: makes an example of each element of the splits, `read(*element) -> example`, after the shuffle: so that what
        waits to be shuffled are paths or row numbers. A pure function.
      pipeline: threads, caches, and what else changes how batches are made, and not what is in them.

    Raises:
      ValueError: for a missing, empty or endless split, augmentations of another kind of inputs, or data that a service
        cannot make.
      ConnectionError: nothing answers at the address of the service.

    >>> data = from_arrays((np.zeros((100, 4), "float32"), np.arange(100) % 2), batch_size=16)
    >>> data.sizes, data.steps_per_epoch, data.input_shape
    ({'train': 80, 'validation': 10, 'test': 10}, 5, (4,))
    """

    splits: Mapping[str, tf.data.Dataset]
    name: str = "data"
    class_names: tuple[str, ...] = ()
    batch_size: int = 64
    seed: int = 0
    transform: Callable[..., Any] | None = None
    augment: tuple[Augmentation, ...] = ()
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prepared: tuple[Callable[[Any], Any], ...] = ()
    read: Callable[..., Any] | None = None
    pipeline: Pipeline = dataclasses.field(default_factory=Pipeline)

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size must be at least 1, received {self.batch_size}")
        require(
            set(self.splits) == set(SPLITS),
            f"splits must be {', '.join(SPLITS)}, received {', '.join(self.splits) or 'none'}",
        )
        for split, size in self.sizes.items():
            require(
                size != 0,
                f"the {split} split of {self.name!r} is empty: give it examples, or make them from the "
                "training split with validation_fraction / test_fraction",
            )
            require(
                size > 0,
                f"the {split} split of {self.name!r} has no known, finite size (cardinality {size}): "
                "add .apply(tf.data.experimental.assert_cardinality(n))",
            )
        if self.augment:
            self._check_augment()
        if self.pipeline.service is not None:
            check_service(self.pipeline.service)
            make, is_augmented = self._batch_maker(), bool(self.augment)
            numbers = tf.data.Dataset.range(1)
            check_workers(self._kept[0]["train"], lambda mixed: make(mixed, is_augmented)(numbers), self.name)

    @property
    def sizes(self) -> dict[str, int]:
        """Examples by split."""
        return {split: int(self.splits[split].cardinality()) for split in SPLITS}

    @property
    def steps_per_epoch(self) -> int:
        """Training batches an epoch, the last one possibly smaller."""
        return -(-self.sizes["train"] // self.batch_size)

    @property
    def element_spec(self) -> tuple[Any, ...]:
        """Shapes and types of one batch, as `tf.TensorSpec`s with the batch size left open."""
        return self._plain._batched(self.splits["train"]).element_spec

    @property
    def input_shape(self) -> Any:
        """Shape of one example's input; a structure of shapes where there are several inputs."""
        return tf.nest.map_structure(lambda spec: tuple(spec.shape[1:]), self.element_spec[0])

    @property
    def train(self) -> tf.data.Dataset:
        """Training batches for `model.fit`, in a new order each time they are iterated."""
        if self.pipeline.service is not None:
            drawn = tf.data.Dataset.random(self.seed, rerandomize_each_iteration=True).take(1)
            return self._epochs(drawn.map(lambda number: number % 2**31), augmented=True)
        shuffled = self._kept[0]["train"].shuffle(self._buffer, seed=self.seed)
        seeds = tf.data.Dataset.random(self.seed, rerandomize_each_iteration=True) if self.augment else None
        batches = self._batched(shuffled, seeds=seeds, ordered=self.pipeline.deterministic)
        return self.pipeline.hand_over(self.pipeline.finish(batches))

    @property
    def validation(self) -> tf.data.Dataset:
        """Validation batches in a fixed order."""
        return self.batches("validation")

    @property
    def test(self) -> tf.data.Dataset:
        """Test batches in a fixed order."""
        return self.batches("test")

    def batches(self, split: Split = "test", batch_size: int | None = None) -> tf.data.Dataset:
        """Batches of a split in a fixed order, for evaluation and calibration."""
        require(split in SPLITS, f"split must be one of {', '.join(SPLITS)}, received {split!r}")
        return self.pipeline.finish(self._batched(self._kept[0][split], batch_size))

    def examples(self, split: Split = "test") -> tf.data.Dataset:
        """Single examples of a split in a fixed order, before augmentation and `transform`."""
        require(split in SPLITS, f"split must be one of {', '.join(SPLITS)}, received {split!r}")
        return self._read(self._kept[0][split])

    def training_batches(self, epoch: int | tf.Variable = 0, augmented: bool = True) -> tf.data.Dataset:
        """The training batches of one epoch; their order depends on the seed and the epoch alone.

        Training that resumes at an epoch so sees what it would have seen without the interruption. An int64
        variable is read each time the dataset is iterated: `fit` iterates once an epoch, and a callback can set it.
        """
        number = tf.data.Dataset.range(1).map(lambda zero: zero + tf.cast(epoch, tf.int64))
        return self._epochs(number, augmented)

    def fingerprint(self) -> str:
        """A short hash of what the data are: name, sizes, batch size, seed, types and every example."""
        digest = hashlib.sha256()
        digest.update(repr((self.name, self.sizes, self.batch_size, self.seed, self.element_spec)).encode())
        digest.update(repr((self.class_names, self.augment)).encode())
        for split in SPLITS:
            for batch in self.examples(split).batch(self.batch_size).prefetch(tf.data.AUTOTUNE):
                for part in tf.nest.flatten(batch):
                    digest.update(tf.io.serialize_tensor(part).numpy())
        return digest.hexdigest()[:16]

    @property
    def _buffer(self) -> int:
        # A buffer as large as the split shuffles perfectly; 100,000 bounds the memory of very large ones.
        return min(self.sizes["train"], 100_000)

    @functools.cached_property
    def _plain(self) -> "Data":
        """The same without a cache, a snapshot or a service: to look at types without reading or writing anything."""
        if self.pipeline == Pipeline():
            return self
        return dataclasses.replace(self, pipeline=Pipeline())

    @functools.cached_property
    def _kept(self) -> tuple[Mapping[str, tf.data.Dataset], Callable[..., Any] | None]:
        """The splits and what reads them; a cache and a snapshot stand in their place."""
        return self.pipeline.keep(self.splits, self.read, self.name)

    def _epochs(self, numbers: tf.data.Dataset, augmented: bool) -> tf.data.Dataset:
        """Training batches of the epochs with these numbers."""
        source, buffer, steps = self._kept[0]["train"], self._buffer, self.steps_per_epoch
        is_augmented, make = augmented and bool(self.augment), self._batch_maker()

        def batches(number: tf.Tensor) -> tf.data.Dataset:
            # Golden-ratio hashing: neighbouring (seed, epoch) pairs get unrelated shuffles.
            mixed = (number + 1) * 0x9E3779B1 + self.seed * 0x85EBCA77
            if self.pipeline.service is not None:
                return distribute(make(mixed, is_augmented), steps, self.pipeline.service)
            seeds = tf.data.Dataset.counter().map(lambda place: fold(mixed, place)) if is_augmented else None
            return self._batched(_shuffled(source, buffer, mixed), seeds=seeds, ordered=self.pipeline.deterministic)

        one_epoch = numbers.flat_map(batches)
        sized = one_epoch.apply(tf.data.experimental.assert_cardinality(steps))
        return self.pipeline.hand_over(self.pipeline.finish(sized))

    def _batch_maker(self) -> Callable[[tf.Tensor, bool], Callable[[tf.data.Dataset], tf.data.Dataset]]:
        """Of an epoch, what makes batches by their numbers, as they would be without a service."""
        (splits, read), buffer, size = self._kept, self._buffer, self.sizes["train"]

        def epoch(mixed: tf.Tensor, is_augmented: bool) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
            order = _shuffled(tf.data.Dataset.range(size), buffer, mixed).batch(size).get_single_element()

            def change(places: tf.Tensor, batch: tuple[Any, ...]) -> tuple[Any, ...]:
                if is_augmented:
                    return self._augmented(fold(mixed, places), batch)
                return batch if self.transform is None else self.transform(*batch)

            return lambda numbers: batches_by_number(numbers, splits["train"], order, self.batch_size, read, change)

        return epoch

    def _read(self, elements: tf.data.Dataset, ordered: bool = True) -> tf.data.Dataset:
        return read_from(elements, self._kept[1], ordered)

    def _batched(
        self,
        elements: tf.data.Dataset,
        batch_size: int | None = None,
        seeds: tf.data.Dataset | None = None,
        ordered: bool = True,
    ) -> tf.data.Dataset:
        """Batches of what is read; augmented where there are seeds for the examples."""
        size, read = batch_size or self.batch_size, self._kept[1]
        options = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": ordered}
        if seeds is not None:
            # Paired before they are read: where that changes the order, each keeps its seed.
            paired = tf.data.Dataset.zip(seeds, elements)
            if read is not None:
                paired = paired.map(lambda seed, element: (seed, read(*element)), **options)
            return paired.batch(size, num_parallel_calls=tf.data.AUTOTUNE).map(self._augmented, **options)
        batches = self._read(elements, ordered).batch(size, num_parallel_calls=tf.data.AUTOTUNE)
        return batches if self.transform is None else batches.map(self.transform, **options)

    def _augmented(self, seeds: tf.Tensor, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        batch = (chain(self.augment, batch[0], seeds), *batch[1:])
        return batch if self.transform is None else self.transform(*batch)

    def _check_augment(self) -> None:
        """Raises where what comes out of the augmentations is not what evaluation sees."""
        spec = read_from(self.splits["train"], self.read).element_spec[0]
        kind = self.augment[0].kind
        require(
            isinstance(spec, tf.TensorSpec) and spec.shape.rank == len(kind.axes),
            f"augment changes {kind.plural} of shape {kind.shape}: the inputs of {self.name!r} are {spec}",
        )
        batch = tf.TensorSpec((None, *spec.shape), spec.dtype)
        if _augmented_spec(self.augment, batch) == batch:
            return
        seeds = tf.data.Dataset.counter()
        augmented = self._plain._batched(self.splits["train"], seeds=seeds).element_spec[0]
        plain = self._plain._batched(self.splits["train"]).element_spec[0]
        require(
            augmented.shape.is_compatible_with(plain.shape) and augmented.dtype == plain.dtype,
            f"augment makes {augmented} of {plain}, which is what validation and test have: bring all splits to one "
            "size and type before, or in `transform`",
        )


# A chain makes its data anew at each stage, and tracing a policy takes seconds.
@functools.lru_cache(maxsize=16)
def _augmented_spec(augment: tuple[Augmentation, ...], batch: tf.TensorSpec) -> tf.TensorSpec:
    """What the augmentations make of a batch."""
    traced = tf.function(lambda examples, seeds: chain(augment, examples, seeds), autograph=False)
    made = traced.get_concrete_function(batch, tf.TensorSpec((None,), tf.int64)).outputs[0]
    return tf.TensorSpec(made.shape, made.dtype)


def _shuffled(source: tf.data.Dataset, buffer: int, seed: tf.Tensor) -> tf.data.Dataset:
    """`source.shuffle` with a tensor as the seed, and that alone: the method mixes in TensorFlow's global one."""
    specs = tf.nest.flatten(source.element_spec)
    shuffled = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(source),
        buffer_size=buffer,
        seed=seed,
        # Both seeds 0 would mean a random order.
        seed2=1,
        reshuffle_each_iteration=False,
        output_types=[spec.dtype for spec in specs],
        output_shapes=[spec.shape for spec in specs],
    )
    return tf.data.experimental.from_variant(shuffled, source.element_spec)


def from_arrays(
    train: Any,
    validation: Any = None,
    test: Any = None,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    stratify: bool = False,
    groups: Any = None,
    **options: Any,
) -> Data:
    """Makes `Data` from arrays in memory.

    Args:
      train: `(x, y)` or `(x, y, sample_weight)`; x and y arrays, or structures of arrays, with the examples
        along the first axis.
      validation: the same; None: drawn from `train` by the seed.
      test: the same; None: drawn from `train` by the seed.
      validation_fraction: share of `train` to draw, in (0, 1).
      test_fraction: share of `train` to draw, in (0, 1).
      stratify: draw the share from each class of y.
      groups: one for each example of `train`, such as its subject: those of a group stay in one split.
      **options: further fields of `Data`, such as `batch_size`, `seed`, `name` and `class_names`.

    Raises:
      ValueError: for arrays of unequal lengths, or an empty split.
    """
    train = _arrays("train", train)
    given = {"validation": validation, "test": test}
    parts = {split: _arrays(split, arrays) for split, arrays in given.items() if arrays is not None}
    fractions = {"validation": validation_fraction, "test": test_fraction}
    wanted = {split: fraction for split, fraction in fractions.items() if split not in parts}
    require(not stratify or np.ndim(train[1]) == 1, "stratify takes y with one label for each example")
    labels, size = train[1] if stratify else None, len(tf.nest.flatten(train)[0])
    for split, rows in draw(size, wanted, options.get("seed", 0), labels, groups).items():
        parts[split] = tf.nest.map_structure(lambda array, rows=rows: array[rows], train)
    return Data({split: tf.data.Dataset.from_tensor_slices(parts[split]) for split in SPLITS}, **options)


def hold_out(examples: tf.data.Dataset, fractions: Mapping[str, float], seed: int) -> dict[str, tf.data.Dataset]:
    """Draws splits from the examples by the seed; returns them and, as "train", the rest, of known sizes."""
    size = int(examples.cardinality())
    drawn = draw(size, fractions, seed)

    def select(rows: np.ndarray) -> tf.data.Dataset:
        is_chosen = tf.constant(np.isin(np.arange(size), rows))
        chosen = examples.enumerate().filter(lambda index, _: is_chosen[index])
        known_size = tf.data.experimental.assert_cardinality(len(rows))
        return chosen.map(lambda _, example: example).apply(known_size)

    return {split: select(rows) for split, rows in drawn.items()}


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A `transform` of batches of uint8 images: to float32, where `value_range` is what pixels 0 and 255 become."""

    value_range: tuple[float, float]

    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scales the images of a batch."""
        low, high = self.value_range
        return tf.cast(x, tf.float32) * ((high - low) / 255.0) + low, y


def _arrays(split: str, arrays: Any) -> tuple[Any, ...]:
    require(
        isinstance(arrays, tuple | list) and len(arrays) in (2, 3),
        f"{split} must be (x, y) or (x, y, sample_weight), received {type(arrays).__name__}",
    )
    arrays = tuple(tf.nest.map_structure(np.asarray, _structure(part)) for part in arrays)
    require(
        all(array.ndim for array in tf.nest.flatten(arrays)),
        f"the arrays of {split} must have the examples along their first axis, received a single number",
    )
    lengths = {len(array) for array in tf.nest.flatten(arrays)}
    require(
        len(lengths) == 1,
        f"the arrays of {split} must have as many rows each, received {sorted(lengths)}",
    )
    return arrays


def _structure(part: Any) -> Any:
    """`part` with lists of arrays, several inputs to Keras, as tuples: to tf.data every list is one array."""
    if isinstance(part, list):
        return tuple(part) if part and all(hasattr(each, "shape") for each in part) else as_array(part)
    return part
