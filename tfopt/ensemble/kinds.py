"""Where the members of an ensemble come from."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import keras

from tfopt.config import Config, require
from tfopt.data import Data
from tfopt.ensemble.members import fresh, same
from tfopt.ensemble.rows import bootstrap, check_fraction

if TYPE_CHECKING:
    from tfopt.stage import Work
    from tfopt.train.stage import Build


@dataclasses.dataclass(frozen=True, repr=False)
class Seeds(Config):
    """Members that differ by chance: other first weights and another order of the examples.

    Args:
      count: of members, at least 2.
      fresh: whether each begins with new weights; else with those of the model as it is, as for a network trained
        before: then only the order, and what is random in training, differ.

    Source: Lakshminarayanan et al., Deep Ensembles, 2017, arXiv:1612.01474.
    """

    count: int = 3
    fresh: bool = True

    def __post_init__(self) -> None:
        check_count(self.count)

    def begin(self, number: int, work: "Work", previous: keras.Model | None) -> tuple[keras.Model, Data]:
        """The model and the data that a member, counted from 1, begins with."""
        model = work.need_model()
        return fresh(model) if self.fresh else same(model), reordered(work.need_data(), number)


@dataclasses.dataclass(frozen=True, repr=False)
class Bagging(Config):
    """Members that are trained on examples drawn with replacement, each with a drawing of its own; else as `Seeds`.

    Args:
      count: of members, at least 2.
      fraction: how many examples are drawn, as a share of the training split, in (0, 1].
      fresh: as in `Seeds`.

    Source: Breiman, Bagging Predictors, 1996.
    """

    count: int = 3
    fraction: float = 1.0
    fresh: bool = True

    def __post_init__(self) -> None:
        check_count(self.count)
        check_fraction(self.fraction)

    def begin(self, number: int, work: "Work", previous: keras.Model | None) -> tuple[keras.Model, Data]:
        """The model and the data that a member, counted from 1, begins with."""
        model, data = Seeds(self.count, self.fresh).begin(number, work, previous)
        return model, bootstrap(data, work.seed * 1000 + number, self.fraction)


@dataclasses.dataclass(frozen=True, repr=False)
class Snapshots(Config):
    """Members from one training: each goes on from the one before, with a learning rate that begins anew.

    Args:
      count: of members, at least 2.

    Source: Huang et al., Snapshot Ensembles, 2017, arXiv:1704.00109.
    """

    count: int = 3
    fresh: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_count(self.count)

    def begin(self, number: int, work: "Work", previous: keras.Model | None) -> tuple[keras.Model, Data]:
        """The model and the data that a member, counted from 1, begins with."""
        assert previous is not None
        return same(previous), reordered(work.need_data(), number)


@dataclasses.dataclass(frozen=True, repr=False)
class Architectures(Config):
    """Members of different architectures, made by `Build` stages; the model that comes in is not used.

    Args:
      builds: two or more.

    >>> from tfopt.train import models
    >>> from tfopt.train.stage import Build
    >>> Architectures((Build(models.cnn), Build(models.ds_cnn))).count
    2
    """

    builds: Sequence["Build"]
    fresh: ClassVar[bool] = True

    def __post_init__(self) -> None:
        from tfopt.train.stage import Build

        for each in self.builds:
            if not isinstance(each, Build):
                raise TypeError(f"Architectures takes Build stages, received {each!r}")
        check_count(self.count)

    @property
    def count(self) -> int:
        """Of members."""
        return len(self.builds)

    def begin(self, number: int, work: "Work", previous: keras.Model | None) -> tuple[keras.Model, Data]:
        """The model and the data that a member, counted from 1, begins with."""
        model = self.builds[number - 1].validate(work).need_model()
        return model, reordered(work.need_data(), number)


@dataclasses.dataclass(frozen=True, repr=False)
class Files(Config):
    """Members that were trained before: whatever `tfopt.load_model` reads; the model that comes in is not used.

    Args:
      paths: two or more.
    """

    paths: Sequence[str | os.PathLike[str]]

    def __post_init__(self) -> None:
        require(not isinstance(self.paths, str), f"paths must be a list of paths, received {self.paths!r}")
        check_count(self.count)

    @property
    def count(self) -> int:
        """Of members."""
        return len(self.paths)

    def load(self) -> list[keras.Model]:
        """The members."""
        from tfopt.load import load_model

        return [load_model(path) for path in self.paths]


@dataclasses.dataclass(frozen=True, repr=False)
class Boosting(Config):
    """Members of which each learns what those before it leave over: their outputs are added, those before stay fixed.

    For small models: each step of the last member's training runs all members. For numbers it learns the residuals; for
    classes the logits are added, before the softmax or sigmoid.

    Args:
      count: of members, at least 2.
      shrinkage: the factor of each member but the first, in (0, 1].

    Source: Friedman, Greedy Function Approximation: A Gradient Boosting Machine, 2001.
    """

    count: int = 3
    shrinkage: float = 1.0
    fresh: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.count)
        require(0 < self.shrinkage <= 1, f"shrinkage must be in (0, 1], received {self.shrinkage!r}")


Trained = Seeds | Bagging | Snapshots | Architectures
Members = Seeds | Bagging | Snapshots | Architectures | Files | Boosting


def check_count(count: Any) -> None:
    """Raises a ValueError unless an ensemble can have so many members."""
    is_whole = isinstance(count, int) and not isinstance(count, bool)
    require(is_whole and count >= 2, f"an ensemble has two members or more, received {count!r}")


def reordered(data: Data, number: int) -> Data:
    """The data with another order of the training examples, and other augmentations, for each number."""
    return dataclasses.replace(data, seed=data.seed + 7919 * number)
