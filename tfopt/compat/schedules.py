"""TFMOT's pruning schedules, which are tfopt's own with TFMOT's methods."""

import abc
from typing import Any

import keras
import numpy as np

from tfopt import schedules
from tfopt.config import require


class PruningSchedule(abc.ABC):
    """When masks are renewed, and how many weights are zero then; a base class for schedules of your own."""

    @abc.abstractmethod
    def __call__(self, step: Any) -> tuple[Any, Any]:
        """(whether masks are renewed at this step, the fraction of zeros there, in [0, 1))."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """{"class_name": …, "config": the arguments of the class}."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PruningSchedule":
        """From the arguments of the class."""
        return cls(**config)

    def _should_prune_in_step(self, step: Any, begin_step: int, end_step: int, frequency: int) -> Any:
        """Whether `step` is one of every `frequency` from `begin_step` on, up to `end_step`; -1: for ever."""
        in_range = (step >= begin_step) & ((step <= end_step) | (end_step < 0))
        return in_range & ((step - begin_step) % frequency == 0)

    def _validate_step(self, begin_step: int, end_step: int, frequency: int, allow_negative_1: bool) -> None:
        require(begin_step >= 0, f"begin_step must be at least 0, received {begin_step}")
        require(allow_negative_1 or end_step != -1, "end_step cannot be -1")
        require(
            end_step == -1 or end_step >= begin_step,
            f"end_step must be -1 or at least begin_step, received begin_step={begin_step}, end_step={end_step}",
        )
        require(frequency > 0, f"frequency must be above 0, received {frequency}")

    def _validate_sparsity(self, sparsity: float, variable_name: str) -> None:
        require(0.0 <= sparsity < 1.0, f"{variable_name} must be in [0, 1), received {sparsity}")


class _Described(PruningSchedule):
    """`get_config` of the schedules that are tfopt's."""

    def get_config(self) -> dict[str, Any]:
        """{"class_name": …, "config": the arguments of the class}, plain numbers for JSON."""
        plain = {key: each.item() if isinstance(each, np.generic) else each for key, each in vars(self).items()}
        return {"class_name": type(self).__name__, "config": plain}


class PolynomialDecay(schedules.PolynomialDecay, _Described):
    """`tfopt.PolynomialDecay`, with TFMOT's `get_config`.

    >>> PolynomialDecay(0.5, 0.8, begin_step=0, end_step=100).get_config()["class_name"]
    'PolynomialDecay'
    """


class ConstantSparsity(schedules.ConstantSparsity, _Described):
    """`tfopt.ConstantSparsity`, with TFMOT's `get_config`.

    >>> isinstance(ConstantSparsity(0.5, 0), PruningSchedule)
    True
    """


def schedule_from(config: dict[str, Any]) -> Any:
    """The schedule that `get_config` described; of one's own classes inside `keras.utils.custom_object_scope`.

    Raises:
      ValueError: the class is not known.
    """
    known = {each.__name__: each for each in (PolynomialDecay, ConstantSparsity)}
    name = config["class_name"]
    found = known.get(name) or keras.saving.get_registered_object(name)
    require(
        found is not None,
        f"the model was saved with a pruning schedule {name!r}, which is not known here: load it inside "
        f"keras.utils.custom_object_scope({{{name!r}: {name}}})",
    )
    return found.from_config(config["config"])
