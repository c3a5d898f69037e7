"""What a search found."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.record import Record
from tfopt.tune.objectives import OBJECTIVES
from tfopt.tune.pareto import pareto_front


@dataclasses.dataclass(frozen=True)
class Trial(Record):
    """One trial.

    Args:
      number: counted from 0.
      parameters: what it was done with, by name.
      state: "complete", "pruned" (it was bad, and ended early) or "failed".
      values: the objectives by name; empty unless it is complete.
      reason: why it failed.
      folder: its files; report.html among them.
    """

    number: int
    parameters: Mapping[str, Any]
    state: str
    values: Mapping[str, float]
    reason: str
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Search(Record):
    """All trials of a search, and the best of them.

    Args:
      objectives: their names, in the order of their weight.
      trials: by number.
      workdir: its files; search.html among them.
    """

    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]
    workdir: pathlib.Path

    @property
    def front(self) -> tuple[Trial, ...]:
        """The Pareto front: complete trials that no other one beats, the best in the first objective first."""
        complete = [each for each in self.trials if each.state == "complete"]
        if not complete:
            return ()
        values = np.array([[each.values[name] for name in self.objectives] for each in complete])
        maximize = [OBJECTIVES[name] for name in self.objectives]
        kept = [each for each, is_kept in zip(complete, pareto_front(values, maximize), strict=True) if is_kept]
        signs = [-1 if each else 1 for each in maximize]
        return tuple(
            sorted(kept, key=lambda each: [s * each.values[n] for s, n in zip(signs, self.objectives, strict=True)])
        )

    @property
    def best(self) -> Trial:
        """The best in the first objective; where there are several, the front has the others."""
        return self.front[0]
