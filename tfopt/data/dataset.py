"""`Data`: the splits of one task, and the pipelines that feed training and evaluation from them."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt.config import require

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

    Raises:
      ValueError: for a missing, empty or endless split.

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
        return self._batched(self.splits["train"]).element_spec

    @property
    def input_shape(self) -> Any:
        """Shape of one example's input; a structure of shapes where there are several inputs."""
        return tf.nest.map_structure(lambda spec: tuple(spec.shape[1:]), self.element_spec[0])

    @property
    def train(self) -> tf.data.Dataset:
        """Training batches for `model.fit`, in a new order each time they are iterated."""
        shuffled = self.splits["train"].shuffle(self._buffer, seed=self.seed)
        return self._batched(shuffled).prefetch(tf.data.AUTOTUNE)

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
        return self._batched(self.splits[split], batch_size).prefetch(tf.data.AUTOTUNE)

    def training_batches(self, first_epoch: int = 0) -> tf.data.Dataset:
        """An endless stream of training batches, epoch after epoch, starting at `first_epoch`.

        The order within an epoch depends on (seed, epoch) alone, so that training which resumes at an epoch
        sees what it would have seen without the interruption. Take `steps_per_epoch` of them an epoch.
        """
        source, seed, buffer = self.splits["train"], self.seed, self._buffer

        def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
            # Golden-ratio hashing: neighbouring (seed, epoch) pairs get unrelated shuffles.
            mixed = (epoch + 1) * 0x9E3779B1 + seed * 0x85EBCA77
            return self._batched(_shuffled(source, buffer, mixed))

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max // 2**32)
        return epochs.flat_map(epoch_batches).prefetch(tf.data.AUTOTUNE)

    def fingerprint(self) -> str:
        """A short hash of what the data are: name, sizes, batch size, seed, types, first and last examples."""
        digest = hashlib.sha256()
        digest.update(repr((self.name, self.sizes, self.batch_size, self.seed, self.element_spec)).encode())
        digest.update(repr(self.class_names).encode())
        for split, size in self.sizes.items():
            ends = self.splits[split].take(8).concatenate(self.splits[split].skip(max(0, size - 8)))
            for example in ends.as_numpy_iterator():
                for part in tf.nest.flatten(example):
                    digest.update(np.asarray(part).tobytes())
        return digest.hexdigest()[:16]

    @property
    def _buffer(self) -> int:
        # A buffer as large as the split shuffles perfectly; 100,000 bounds the memory of very large ones.
        return min(self.sizes["train"], 100_000)

    def _batched(self, examples: tf.data.Dataset, batch_size: int | None = None) -> tf.data.Dataset:
        batches = examples.batch(batch_size or self.batch_size, num_parallel_calls=tf.data.AUTOTUNE)
        if self.transform is None:
            return batches
        return batches.map(self.transform, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _shuffled(source: tf.data.Dataset, buffer: int, seed: tf.Tensor) -> tf.data.Dataset:
    """`source.shuffle` with a tensor as the seed, and that seed alone: the method mixes in TensorFlow's global one."""
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
      **options: further fields of `Data`, such as `batch_size`, `seed`, `name` and `class_names`.

    Raises:
      ValueError: for arrays of unequal lengths, or an empty split.
    """
    train = _arrays("train", train)
    size = len(tf.nest.flatten(train)[0])
    order = np.random.default_rng(options.get("seed", 0)).permutation(size)
    taken = 0
    given: dict[str, Any] = {"validation": validation, "test": test}
    fractions = {"validation": validation_fraction, "test": test_fraction}
    for split, arrays in given.items():
        if arrays is not None:
            given[split] = _arrays(split, arrays)
            continue
        count = _share(split, fractions[split], size)
        rows = np.sort(order[taken : taken + count])
        given[split] = tf.nest.map_structure(lambda array, rows=rows: array[rows], train)
        taken += count
    rows = np.sort(order[taken:])
    given["train"] = tf.nest.map_structure(lambda array: array[rows], train) if taken else train
    splits = {split: tf.data.Dataset.from_tensor_slices(given[split]) for split in SPLITS}
    return Data(splits, **options)


def hold_out(
    examples: tf.data.Dataset, fraction: float, seed: int, split: str = "validation"
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Draws a share of the examples by the seed; returns (the rest, the drawn), each of known size."""
    size = int(examples.cardinality())
    count = _share(split, fraction, size)
    drawn = np.zeros(size, bool)
    drawn[np.random.default_rng(seed).permutation(size)[:count]] = True
    is_drawn = tf.constant(drawn)

    def select(wanted: bool, count: int) -> tf.data.Dataset:
        chosen = examples.enumerate().filter(lambda index, _: is_drawn[index] == wanted)
        return chosen.map(lambda _, example: example).apply(
            tf.data.experimental.assert_cardinality(count)
        )

    return select(False, size - count), select(True, count)


def _share(split: str, fraction: float, size: int) -> int:
    require(0 < fraction < 1, f"{split}_fraction must be in (0, 1), received {fraction!r}")
    require(size > 0, f"cannot draw the {split} split: there are no training examples")
    return max(1, round(size * fraction))


def _arrays(split: str, arrays: Any) -> tuple[Any, ...]:
    require(
        isinstance(arrays, tuple | list) and len(arrays) in (2, 3),
        f"{split} must be (x, y) or (x, y, sample_weight), received {type(arrays).__name__}",
    )
    arrays = tuple(tf.nest.map_structure(np.asarray, part) for part in arrays)
    lengths = {len(array) for array in tf.nest.flatten(arrays)}
    require(
        len(lengths) == 1,
        f"the arrays of {split} must have as many rows each, received {sorted(lengths)}",
    )
    return arrays
