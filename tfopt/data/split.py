"""Which examples are held out: at random by a seed, class by class, or whole groups."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.config import require


def draw(
    size: int, fractions: Mapping[str, float], seed: int, labels: Any = None, groups: Any = None
) -> dict[str, np.ndarray]:
    """The rows of each split, in rising order, and of "train", which keeps the rest.

    Args:
      size: the number of rows.
      fractions: by split, the share of the rows to draw, in (0, 1).
      seed: the same seed draws the same rows.
      labels: one for each row: each class gives its share.
      groups: one for each row, such as a subject: rows of a group stay together. Splits get whole groups until they
        have their share, at least one each.

    Raises:
      ValueError: a fraction out of range, no rows, a missing label or group, or too few groups or members of a class.

    >>> {split: rows.tolist() for split, rows in draw(6, {"test": 0.3}, 0, groups=[0, 0, 1, 1, 2, 2]).items()}
    {'test': [4, 5], 'train': [0, 1, 2, 3]}
    """
    for split, fraction in fractions.items():
        require(0 < fraction < 1, f"{split}_fraction must be in (0, 1), received {fraction!r}")
        require(size > 0, f"cannot draw the {split} split: there are no training examples")
    require(labels is None or groups is None, "give labels to stratify by, or groups to keep together, not both")
    for name, given in (("labels", labels), ("groups", groups)):
        if given is None:
            continue
        require(
            np.shape(given) == (size,),
            f"{name} must be one for each of {size} examples, received {np.size(given)} of shape {np.shape(given)}",
        )
        missing = [row for row, each in enumerate(np.asarray(given).tolist()) if each is None or each != each]
        require(not missing, f"{name} must not be missing: that of example {missing[:1]} is; leave it out or name it")
    rng = np.random.default_rng(seed)
    if groups is not None:
        return _whole_groups(np.asarray(groups), fractions, rng)
    if labels is None:
        return _at_random(np.arange(size), fractions, rng)
    parts = []
    for value in np.unique(labels).tolist():
        rows = np.flatnonzero(np.asarray(labels) == value)
        require(
            len(rows) > len(fractions),
            f"the class {value!r} has {len(rows)} examples: at least {len(fractions) + 1} are needed to draw "
            f"{' and '.join(fractions)} from it",
        )
        parts.append(_at_random(rows, fractions, rng))
    return {split: np.sort(np.concatenate([part[split] for part in parts])) for split in (*fractions, "train")}


def _at_random(rows: np.ndarray, fractions: Mapping[str, float], rng: np.random.Generator) -> dict[str, np.ndarray]:
    rest, drawn = rows[rng.permutation(len(rows))], {}
    for split, fraction in fractions.items():
        count = max(1, round(len(rows) * fraction))
        drawn[split], rest = np.sort(rest[:count]), rest[count:]
    return {**drawn, "train": np.sort(rest)}


def _whole_groups(
    groups: np.ndarray, fractions: Mapping[str, float], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    names, members = np.unique(groups, return_inverse=True)
    require(
        len(names) > len(fractions),
        f"there are {len(names)} groups: at least {len(fractions) + 1} are needed to draw {' and '.join(fractions)}",
    )
    sizes, order = np.bincount(members), list(rng.permutation(len(names)))
    drawn = {}
    for number, (split, fraction) in enumerate(fractions.items(), 1):
        taken: list[int] = []
        # One group at least is left for each split to come, and for training.
        while len(order) > len(fractions) - number + 1 and sizes[taken].sum() < round(fraction * len(groups)):
            taken.append(order.pop(0))
        drawn[split] = np.flatnonzero(np.isin(members, taken or [order.pop(0)]))
    return {**drawn, "train": np.flatnonzero(np.isin(members, order))}
