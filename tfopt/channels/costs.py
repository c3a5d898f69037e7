"""What a model costs, from counts of channels alone: no model is built for it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tfopt.config import Config


@dataclasses.dataclass(frozen=True, repr=False)
class Costs(Config):
    """The size of a model.

    Args:
      channels: outputs of all convolutions and dense layers that make channels of their own.
      parameters: as `model.count_params()` counts them.
      macs: multiplications with a weight in one example's convolutions (plain, depthwise, separable, transposed) and
        dense layers; those of a shared layer at each call. None where the model leaves a size of its input open.
    """

    channels: int
    parameters: int
    macs: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """A number that is a product: of a constant, None where unknown, and how many of each array of ids are kept.

    >>> Term(9, (np.array([0, 1]), np.array([2, 3, 4]))).count(np.array([True, False, True, True, False]))
    18
    """

    constant: int | None
    ids: tuple[np.ndarray, ...] = ()

    def count(self, keep: np.ndarray) -> int:
        """The product under a mask over all ids; an unknown constant counts as 0."""
        return (self.constant or 0) * math.prod(int(np.count_nonzero(keep[ids])) for ids in self.ids)


@dataclasses.dataclass(frozen=True, eq=False)
class Bill:
    """The costs of a model as sums of terms."""

    channels: Sequence[Term]
    parameters: Sequence[Term]
    macs: Sequence[Term]

    def costs(self, keep: np.ndarray) -> Costs:
        """The costs with the ids that a mask keeps."""
        channels, parameters, macs = (
            sum(term.count(keep) for term in terms) for terms in (self.channels, self.parameters, self.macs)
        )
        known = all(term.constant is not None for term in self.macs)
        return Costs(channels, parameters, macs if known else None)


def positions(shape: Sequence[int | None]) -> int | None:
    """How many places a tensor has beside batch and channels; None where a size is open.

    >>> positions((None, 8, 8, 3)), positions((None, None, 3)), positions((None, 3))
    (64, None, 1)
    """
    inner = shape[1:-1]
    return None if None in inner else math.prod(size for size in inner if size is not None)
