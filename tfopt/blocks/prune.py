"""`prune_blocks`: an ordinary model without some of its residual blocks."""

from collections.abc import Sequence
from typing import Any

import keras

from tfopt.blocks.find import Block, find_blocks
from tfopt.config import require
from tfopt.copies import ModelCopier, copy_layer, copy_trainable
from tfopt.graph import deep_graphs, flatten
from tfopt.variables import LayerSelection


@deep_graphs()
def prune_blocks(model: keras.Model, blocks: Sequence[str]) -> keras.Model:
    """Takes whole residual blocks out of a model: x + f(x) becomes x.

    All other layers keep their settings, weights and names. What is left must be trained.

    Args:
      model: a built functional or Sequential model; stays as it is.
      blocks: the names of their sums, as `find_blocks` gives them; none copies the model.

    Returns:
      A new model with the inputs and outputs of the old one, not compiled.

    Raises:
      ValueError: a name of no block that can go, with those that can; or a subclassed model.

    Source: Veit et al., 2016, arXiv:1605.06431; Chen and Zhao, Shallowing Deep Networks, 2019, IEEE TPAMI 41 (12).

    >>> inputs = keras.Input((8, 8, 4))
    >>> branch = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    >>> outputs = keras.layers.Flatten()(keras.layers.Add(name="sum")([inputs, branch]))
    >>> [layer.__class__.__name__ for layer in prune_blocks(keras.Model(inputs, outputs), ["sum"]).layers]
    ['InputLayer', 'Flatten']
    """
    chosen = named_blocks(model, blocks)
    sums = {id(node.operation): node.name for node in flatten(model).nodes}
    copier = _Copier({key: chosen[name] for key, name in sums.items() if name in chosen})
    smaller: keras.Model = copier.copy(model)
    for old, new in copier.pairs():
        if not isinstance(old, keras.Model):
            copy_layer(old, new)
    copy_trainable(copier)
    return smaller


def named_blocks(model: keras.Model, blocks: LayerSelection) -> dict[str, Block]:
    """The blocks of these names.

    Raises:
      ValueError: a name of none that can go.
    """
    if isinstance(blocks, str) or not isinstance(blocks, Sequence):
        raise ValueError(f"blocks must be a list of the names of sums, received {blocks!r}")
    known = {each.name: each for each in find_blocks(model)}
    for name in blocks:
        require(
            name in known,
            f"{name!r} is no residual block that can be taken out of {model.name!r}; "
            + (f"there are {', '.join(known)}" if known else "it has none: prune channels"),
        )
    return {name: known[name] for name in blocks}


class _Copier(ModelCopier):
    """Hands on the direct connection in place of a sum."""

    def __init__(self, blocks: dict[int, Block]) -> None:
        super().__init__()
        self._blocks = blocks

    def call(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """The sum without its branch, or what the call was."""
        block = self._blocks.get(id(operation))
        if block is None:
            return super().call(operation, *args, **kwargs)
        tensors = [each for each in keras.tree.flatten((args, kwargs)) if isinstance(each, keras.KerasTensor)]
        return tensors[block.direct]
