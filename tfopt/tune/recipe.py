"""A recipe with some of its values replaced: parameters of its function, or fields of its stages."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfopt.config import did_you_mean, require
from tfopt.stage import Stage
from tfopt.tune.spaces import Choice, Range, Space

Recipe = Callable[..., Sequence[Stage]] | Sequence[Stage]


def build(recipe: Recipe, values: Mapping[str, Any]) -> list[Stage]:
    """The stages of a recipe with these values.

    Args:
      recipe: a function that returns stages, or a list of them.
      values: by the name of a parameter of the function, or by the path of a field: "Train.fit.learning_rate" is that
        of the only `Train` in the chain, "03-Train.fit.learning_rate" that of the third stage. A key of a mapping is
        named in the same way: "Build.options.filters".

    >>> from tfopt.train.stage import Train
    >>> build([Train(epochs=3)], {"Train.fit.optimizer": "sgd"})
    [Train(epochs=3, fit=Fit(optimizer='sgd'))]
    """
    parameters = {name: value for name, value in values.items() if "." not in name}
    stages = list(recipe(**parameters) if callable(recipe) else recipe)
    for path, value in values.items():
        if "." in path:
            name, *fields = path.split(".")
            index = _index(stages, name)
            stages[index] = _replaced(stages[index], fields, value, path)
    return stages


def check_spaces(recipe: Recipe, spaces: Mapping[str, Space]) -> list[Stage]:
    """Raises where the recipe has nothing of that name; returns its stages with a first value for each parameter.

    Raises:
      TypeError: something is no search space.
      ValueError: there are no spaces, or a name does not exist.
    """
    require(bool(spaces), 'the search space is empty: name what to vary, as in {"sparsity": tune.Range(0.5, 0.9)}')
    for name, space in spaces.items():
        if not isinstance(space, Range | Choice):
            raise TypeError(f"the space of {name!r} must be a tune.Range or tune.Choice, received {space!r}")
    parameters = {name: space.first for name, space in spaces.items() if "." not in name}
    known = inspect.signature(recipe).parameters if callable(recipe) else {}
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    for name in parameters:
        require(
            name in known or takes_any,
            f"the recipe has no parameter {name!r}: {did_you_mean(name, known)}. A field of a stage is named as in "
            '"Train.fit.learning_rate"',
        )
    stages = build(recipe, parameters)
    for path in spaces:
        if "." in path:
            name, *fields = path.split(".")
            owner: Any = stages[_index(stages, name)]
            for field in fields:
                owner = _get(owner, field, path)
    return stages


def _index(stages: Sequence[Stage], name: str) -> int:
    """The place of the stage with a name such as "Train", where there is one only, or "03-Train"."""
    numbered = [f"{number:02d}-{stage.name}" for number, stage in enumerate(stages, 1)]
    if name in numbered:
        return numbered.index(name)
    found = [index for index, stage in enumerate(stages) if stage.name == name]
    require(len(found) > 0, f"the recipe has no stage {name!r}: {did_you_mean(name, numbered)}")
    several = " or ".join(numbered[index] for index in found)
    require(len(found) == 1, f"the recipe has several stages {name!r}: write {several}")
    return found[0]


def _get(owner: Any, field: str, path: str) -> Any:
    if isinstance(owner, Mapping):
        return owner.get(field)
    known = [each.name for each in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
    require(bool(known), f"{path!r} leads to nothing: {owner!r} has no fields, so no {field!r}")
    require(field in known, f"{path!r} leads to nothing: no field {field!r}; {did_you_mean(field, known)}")
    return getattr(owner, field)


def _replaced(owner: Any, fields: Sequence[str], value: Any, path: str) -> Any:
    field, *rest = fields
    inner = _get(owner, field, path)
    new = _replaced(inner, rest, value, path) if rest else value
    return {**owner, field: new} if isinstance(owner, Mapping) else dataclasses.replace(owner, **{field: new})
