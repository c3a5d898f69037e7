"""What `PruningCallback` and `Prune` take as layers."""

from collections.abc import Mapping

import keras

from tfopt.config import require_fraction
from tfopt.kernels import select_kernels
from tfopt.patterns import Pattern
from tfopt.variables import LayerSelection

# Layers, or the final sparsity by the name of a layer.
Targets = LayerSelection | Mapping[str, float]


def find_targets(
    model: keras.Model, layers: Targets, pattern: Pattern
) -> tuple[list[keras.Variable], list[float | None], list[dict[str, str]]]:
    """The kernels to prune, the final sparsity of each where `layers` gives one, and the layers left out.

    Raises:
      ValueError: nothing can be pruned, a name does not exist, a sparsity is outside [0, 1), or the pattern's groups
        are larger than a kernel.
    """
    if isinstance(layers, Mapping):
        for name, sparsity in layers.items():
            require_fraction(f"the sparsity of {name!r}", sparsity)
    variables, skipped = select_kernels(model, list(layers) if isinstance(layers, Mapping) else layers)
    finals: list[float | None] = [None] * len(variables)
    if isinstance(layers, Mapping):
        for name, sparsity in layers.items():
            chosen = {id(each) for each in select_kernels(model, [name])[0]}
            finals = [sparsity if id(each) in chosen else old for each, old in zip(variables, finals, strict=True)]
    for variable in variables:
        pattern.require_fits(tuple(variable.shape), variable.path)
    return variables, finals, skipped
