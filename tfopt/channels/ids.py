"""Channels as integer ids: which of them stay or go together, and which must stay."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfopt.config import require


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """Ids that stay or go together.

    Args:
      labels: by id, the least id of its class; int64 of (ids,).
      frozen: by label, why the class must stay.
    """

    labels: np.ndarray
    frozen: Mapping[int, str]


class Ties:
    """Hands out ids, and takes notes of what is tied and what is frozen.

    >>> ties = Ties()
    >>> first, second = ties.new(3), ties.new(3)
    >>> ties.tie(first, second)
    >>> ties.freeze(second[:1], "an output")
    >>> ties.classes().labels.tolist(), dict(ties.classes().frozen)
    ([0, 1, 2, 0, 1, 2], {0: 'an output'})
    """

    def __init__(self) -> None:
        self.count = 0
        self._tied: list[tuple[np.ndarray, np.ndarray]] = []
        self._frozen: list[tuple[np.ndarray, str]] = []

    def new(self, size: int) -> np.ndarray:
        """Ids that nothing else has."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        """Ties the ids of two arrays, one by one.

        Raises:
          ValueError: they differ in length.
        """
        require(len(first) == len(second), f"{len(first)} channels cannot be tied to {len(second)}")
        self._tied.append((first, second))

    def tie_across(self, ids: np.ndarray, groups: int) -> None:
        """Ties the channels with the same position inside each of `groups` equal parts."""
        parts = ids.reshape(groups, -1)
        for part in parts[1:]:
            self.tie(parts[0], part)

    def freeze(self, ids: np.ndarray, reason: str) -> None:
        """Says that these must stay; of several reasons the last is told."""
        self._frozen.append((ids, reason))

    def classes(self) -> Classes:
        """What is tied by now, directly or through others."""
        labels = np.arange(self.count)
        if self._tied:
            first, second = (np.concatenate(each) for each in zip(*self._tied, strict=True))
            while np.any(labels[first] != labels[second]):
                one, other = labels[first], labels[second]
                least = np.minimum(one, other)
                # The roots, so that whole classes move at once.
                np.minimum.at(labels, one, least)
                np.minimum.at(labels, other, least)
                while np.any(labels != labels[labels]):
                    labels = labels[labels]
        frozen = {int(label): reason for ids, reason in self._frozen for label in np.unique(labels[ids])}
        return Classes(labels, frozen)
