"""Which training examples a member sees: drawn with replacement, or all but a fold."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import require, require_fraction
from tfopt.data import Data
from tfopt.data.digest import digest

_BATCH = 256


def bootstrap(data: Data, seed: int = 0, fraction: float = 1.0) -> Data:
    """The data with a training split of examples drawn with replacement: about 63 % of them, some several times.

    Args:
      data: the validation and test splits stay.
      seed: of the drawing.
      fraction: how many are drawn, as a share of the training split, in (0, 1].

    Raises:
      ValueError: a fraction out of range, or one that draws nothing.

    Source: Breiman, Bagging Predictors, 1996.

    >>> from tfopt.data import from_arrays
    >>> data = from_arrays((np.arange(100.0), np.arange(100) % 2))
    >>> drawn = bootstrap(data, seed=1)
    >>> drawn.sizes == data.sizes, len({float(x) for x, _ in drawn.examples("train")})
    (True, 51)
    """
    check_fraction(fraction)
    size = data.sizes["train"]
    drawn = np.random.default_rng(seed).integers(0, size, round(fraction * size))
    return with_rows(data, np.bincount(drawn, minlength=size))


def check_fraction(fraction: float) -> None:
    """Raises a ValueError unless a fraction is in (0, 1]."""
    require_fraction("fraction", fraction, one=True)
    require(fraction > 0, "fraction must be above 0, received 0: nothing would be drawn")


def with_rows(data: Data, counts: np.ndarray) -> Data:
    """The data with each training example as often as `counts` says, in the same order.

    Args:
      data: the validation and test splits stay.
      counts: whole numbers from 0, shape (training examples,).

    Raises:
      ValueError: nothing is left.
    """
    return dataclasses.replace(data, splits={**data.splits, "train": take_rows(data, counts)})


def take_rows(data: Data, counts: np.ndarray) -> tf.data.Dataset:
    """The elements of the training split, each as often as `counts` says."""
    total = int(np.sum(counts))
    require(total > 0, f"none of the {len(counts)} training examples of {data.name!r} would be left")
    times = tf.constant(counts, tf.int64)
    elements = data.splits["train"].enumerate().filter(lambda row, _: times[row] > 0)
    if np.max(counts) > 1:
        elements = elements.flat_map(lambda row, each: tf.data.Dataset.from_tensors((row, each)).repeat(times[row]))
    return elements.map(lambda _, each: each).apply(tf.data.experimental.assert_cardinality(total))


def folds_of(data: Data, folds: int, seed: int = 0) -> np.ndarray:
    """The fold of each training example: equal inputs are in the same one, else each is at random.

    Args:
      data: whose training split is read.
      folds: how many, at least 2.
      seed: of the drawing.

    Returns:
      int64 in [0, folds), shape (training examples,); the folds are as equal in size as copies allow.

    Raises:
      ValueError: fewer than two folds, or more than there are different examples.

    >>> from tfopt.data import from_arrays
    >>> x = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 1.0])
    >>> found = folds_of(from_arrays((x, x), (x, x), (x, x)), 3)
    >>> len(set(found[[0, 4, 5]])), np.bincount(found).tolist()
    (1, [3, 2, 1])
    """
    check_folds(folds)
    keys = [digest([part.numpy() for part in tf.nest.flatten(x)]) for x, *_ in data.examples("train")]
    _, groups = np.unique(np.array([key.hex() for key in keys]), return_inverse=True)
    count = int(groups.max()) + 1
    require(
        count >= folds,
        f"{folds} folds need as many different training examples, and {data.name!r} has {count}: take fewer folds",
    )
    sizes, filled = np.bincount(groups), np.zeros(folds, int)
    fold_of_group = np.zeros(count, int)
    order = np.random.default_rng(seed).permutation(count)
    # The largest groups of copies first, each to the fold that is emptiest.
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of_group[group] = np.argmin(filled)
        filled[fold_of_group[group]] += sizes[group]
    return fold_of_group[groups]


def check_folds(folds: Any) -> None:
    """Raises a ValueError unless it is a whole number from 2."""
    is_whole = isinstance(folds, int) and not isinstance(folds, bool)
    require(is_whole and folds >= 2, f"folds must be a whole number from 2, received {folds!r}")
