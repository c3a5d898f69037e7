"""The least change of a model that reaches a target, found by halving."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Choice = TypeVar("Choice")
Shares = Mapping[str, float]


def meets(shares: Shares, target: Shares) -> bool:
    """Whether no more remains than the target allows, by cost."""
    return all(shares[key] <= most for key, most in target.items())


def bisect(reached: Callable[[float], bool], low: float, high: float, steps: int) -> tuple[float, float]:
    """The greatest value that misses and the least that reaches, to (high - low) / 2**steps; `high` reaches.

    >>> bisect(lambda value: value >= 0.3, 0.0, 1.0, 4)
    (0.25, 0.3125)
    """
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return low, high


def give_back(
    less: Sequence[Choice], more: Sequence[Choice], shares: Callable[[Sequence[Choice]], Shares], target: Shares
) -> list[Choice]:
    """What is taken of each part, where some may do with less.

    Kept channels are multiples, so that at one ratio many parts shrink at once, often past the target.

    Args:
      less: of each part, what is taken where the target is missed by little.
      more: of each part, what is taken where it is reached.
      shares: what remains, by cost, of what is taken of each.
      target: the most that may remain.

    >>> give_back([0, 0, 0], [4, 2, 1], lambda taken: {"macs": 1 - sum(taken) / 10}, {"macs": 0.5})
    [4, 2, 0]
    """
    taken = list(more)

    def with_less(index: int) -> list[Choice]:
        return [*taken[:index], less[index], *taken[index + 1 :]]

    # The cheapest first: so most parts keep more.
    for index in sorted(range(len(taken)), key=lambda each: sum(shares(with_less(each)).values())):
        if meets(shares(with_less(index)), target):
            taken = with_less(index)
    return taken


def nearest(shares: Shares) -> dict[str, float]:
    """Shares as an error states them: rounded up, so that what is stated can be reached."""
    return {key: math.ceil(share * 1e4) / 1e4 for key, share in shares.items()}
