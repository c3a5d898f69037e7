"""Where to cut a row of operations into consecutive parts, and what crosses the cuts: plain numbers only."""

import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from tfopt.config import require

Key = TypeVar("Key", bound=Hashable)


def allowed_cuts(size: int, whole: Iterable[tuple[int, int]]) -> list[int]:
    """The places in a row of `size` items where a part may begin, but not inside a stretch that stays whole.

    Args:
      size: number of items.
      whole: (first, last) item of each stretch, such as the calls of a shared layer.

    >>> allowed_cuts(6, [(1, 3)])
    [1, 4, 5]
    """
    inside = {cut for first, last in whole for cut in range(first + 1, last + 1)}
    return [cut for cut in range(1, size) if cut not in inside]


def balanced_cuts(costs: Sequence[int], parts: int, allowed: Sequence[int]) -> list[int]:
    """Where each part but the first begins, so that the dearest part costs as little as can be.

    Among equal ones, the last: what costs nothing stays with what is before it.

    Args:
      costs: of each item, at least 0.
      parts: how many there shall be, at least 1.
      allowed: where a part may begin, increasing, each in [1, len(costs)).

    Raises:
      ValueError: there are fewer allowed cuts than needed.

    >>> balanced_cuts([5, 0, 1, 1, 4, 0], 3, allowed=range(1, 6))
    [2, 4]
    """
    require(len(allowed) >= parts - 1, f"{parts} parts need {parts - 1} cuts, and {len(allowed)} are possible")
    ends = np.array([0, *allowed, len(costs)])
    # Costs up to each possible end.
    before = np.concatenate([[0], np.cumsum(np.asarray(costs, dtype=np.float64))])[ends]
    # The least possible cost of the dearest part, up to each end, and where the last part begins then.
    dearest, begins = before.copy(), []
    dearest[0] = np.inf
    for _ in range(parts - 1):
        begin = np.zeros(len(ends), dtype=int)
        following = np.full(len(ends), np.inf)
        for end in range(1, len(ends)):
            choices = np.maximum(dearest[:end], before[end] - before[:end])
            begin[end] = end - 1 - int(np.argmin(choices[::-1]))
            following[end] = choices[begin[end]]
        dearest = following
        begins.append(begin)
    cuts, end = [], len(ends) - 1
    for begin in reversed(begins):
        end = int(begin[end])
        cuts.append(int(ends[end]))
    return cuts[::-1]


def crossings(
    operations: Sequence[tuple[Sequence[Key], Sequence[Key]]], cuts: Sequence[int], wanted: Iterable[Key]
) -> list[tuple[tuple[Key, ...], tuple[Key, ...]]]:
    """What each part receives, from parts before it or as the model's input, and what others need of what it makes.

    Args:
      operations: in running order, (what it reads, what it makes).
      cuts: where each part but the first begins.
      wanted: what the model returns.

    Returns:
      (receives, sends) of each part, in order of first use and of making.

    >>> crossings([("x", "a"), ("a", "b"), (("a", "b"), "c")], cuts=[1, 2], wanted="c")
    [(('x',), ('a',)), (('a',), ('b',)), (('a', 'b'), ('c',))]
    """
    spans = [slice(*pair) for pair in itertools.pairwise([0, *cuts, len(operations)])]
    received, made = [], []
    for span in spans:
        writes = dict.fromkeys(key for _, its in operations[span] for key in its)
        reads = dict.fromkeys(key for its, _ in operations[span] for key in its if key not in writes)
        received.append(tuple(reads))
        made.append(tuple(writes))
    needed = {*wanted, *itertools.chain.from_iterable(received)}
    return [(reads, tuple(key for key in its if key in needed)) for reads, its in zip(received, made, strict=True)]
