"""What users hold already, as `Data`."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from tfopt.config import require
from tfopt.data.dataset import SPLITS, Data, from_arrays, hold_out


def as_data(source: Any) -> Data:
    """Turns what users have at hand into `Data`.

    Args:
      source: one of
        - `Data`: returned as it is;
        - `(x, y)` or `(x, y, sample_weight)` arrays: split 80/10/10 by a fixed seed;
        - `((x_train, y_train), (x_test, y_test))`, as `keras.datasets` give: a tenth of the training part
          becomes the validation split;
        - a batched `tf.data.Dataset` of `(x, y)`: split 80/10/10 by a fixed seed, its batch size kept;
        - a mapping from "train" and, as far as there are any, "validation" and "test" to any of these.

    Raises:
      TypeError: for anything else.
      ValueError: for empty splits and arrays of unequal lengths.

    >>> import numpy as np
    >>> as_data((np.zeros((50, 3)), np.arange(50) % 2)).sizes
    {'train': 40, 'validation': 5, 'test': 5}
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, tf.data.Dataset):
        return _from_datasets({"train": source})
    if isinstance(source, Mapping):
        unknown = set(source) - set(SPLITS)
        require(
            not unknown and "train" in source,
            f"data must map from {', '.join(SPLITS)} ('train' at least), received {', '.join(source)}",
        )
        if all(isinstance(each, tf.data.Dataset) for each in source.values()):
            return _from_datasets(source)
        return from_arrays(**source)
    if isinstance(source, tuple | list) and len(source) in (2, 3):
        pairs = [isinstance(each, tuple | list) and len(each) == 2 for each in source]
        if len(source) == 2 and all(pairs) and not isinstance(source[0][0], tuple | list | float | int):
            return from_arrays(source[0], test=source[1])
        return from_arrays(tuple(source))
    raise TypeError(
        f"data must be a tfopt.Data, a batched tf.data.Dataset, arrays (x, y), or a dict of these by split; "
        f"received {type(source).__name__}"
    )


def _from_datasets(datasets: Mapping[str, tf.data.Dataset]) -> Data:
    batch_size, splits = 0, {}
    for split, dataset in datasets.items():
        spec = tf.nest.flatten(dataset.element_spec)
        require(
            isinstance(dataset.element_spec, tuple) and len(dataset.element_spec) in (2, 3),
            f"the {split} dataset must give (x, y) or (x, y, sample_weight), it gives {dataset.element_spec}",
        )
        require(
            all(each.shape.rank is None or each.shape.rank >= 1 for each in spec)
            and len({each.shape[0] for each in spec if each.shape.rank} - {None}) <= 1,
            f"the {split} dataset must be batched: call .batch(n) on it; it gives {dataset.element_spec}",
        )
        require(
            int(dataset.cardinality()) != tf.data.INFINITE_CARDINALITY,
            f"the {split} dataset is endless: remove .repeat(), or add .take(n)",
        )
        if _beginning(dataset) != _beginning(dataset):
            # Splits drawn from an order that changes would share examples: the test split would leak.
            logging.warning(
                "the %s dataset gives other examples each time it is read, so it is kept in memory as it is read now: "
                "its own shuffling and augmentation happen once, tfopt shuffles each epoch by itself. Without a seed "
                "in it, another process cannot resume the run; better remove .shuffle() and random augmentation",
                split,
            )
            dataset = dataset.cache()
        examples = dataset.unbatch()
        # One pass counts the examples and finds the batch size: both are needed before training.
        sizes = [int(tf.shape(tf.nest.flatten(batch)[0])[0]) for batch in dataset]
        if split == "train" and sizes:
            batch_size = max(sizes)
        splits[split] = examples.apply(tf.data.experimental.assert_cardinality(sum(sizes)))
    missing = {split: 0.1 for split in ("validation", "test") if split not in splits}
    if missing:
        splits |= hold_out(splits["train"], missing, seed=0)
    return Data(splits, batch_size=max(1, batch_size))


def _beginning(dataset: tf.data.Dataset, batches: int = 4) -> list[bytes]:
    """The first batches, to be compared."""
    parts = [part for batch in dataset.take(batches) for part in tf.nest.flatten(batch)]
    return [tf.io.serialize_tensor(part).numpy() for part in parts]
