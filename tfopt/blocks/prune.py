"""`prune_blocks`: an ordinary model without some of its residual blocks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfopt.blocks.find import Block, find_blocks
from tfopt.config import require
from tfopt.copies import ModelCopier, copy_layer, copy_trainable
from tfopt.graph import Graph, deep_graphs, flatten
from tfopt.quantize.activations import Activation, activation_of, by_function
from tfopt.variables import LayerSelection


@deep_graphs()
def prune_blocks(model: keras.Model, blocks: Sequence[str]) -> keras.Model:
    """Takes whole residual blocks out of a model: x + f(x) becomes x.

    All other layers keep their settings, weights and names; only a ReLU behind the sum goes with it where it would
    repeat one that x has behind it. What is left must be trained.

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
    copier = _Copier(_handed_on(flatten(model), chosen))
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


def _handed_on(graph: Graph, chosen: Mapping[str, Block]) -> dict[int, int]:
    """By the id of each operation that goes, which of its inputs takes the place of what it makes."""
    found = {}
    for node in graph.nodes:
        if node.name not in chosen:
            continue
        direct = chosen[node.name].direct
        found[id(node.operation)] = direct
        maker = graph.maker(node.inputs[direct])
        before = None if maker is None else _cut(maker.operation)
        for reader in graph.consumers(node.outputs[0]):
            # LiteRT would compute it as an operator of its own, which in integers takes longer than a convolution.
            after = activation_of(reader.operation)
            if before is not None and _repeats(after, before) and graph.calls(reader.operation) == 1:
                found[id(reader.operation)] = 0
    return found


def _cut(operation: keras.Operation) -> Activation | None:
    """Between which ends an operation's outputs are cut, as by a ReLU; None where they are not."""
    function = getattr(operation, "activation", None)
    found = activation_of(operation) or (by_function(function) if callable(function) else None)
    return found if found is not None and found.kind == "clip" else None


def _repeats(after: Activation | None, before: Activation) -> bool:
    """Whether an activation cuts nothing off that was not cut off before."""
    if after is None or after.kind != "clip":
        return False

    def ends(cut: Activation) -> tuple[float, float]:
        low, high = cut["low"], cut["high"]
        return -math.inf if low is None else low, math.inf if high is None else high

    (low, high), (least, most) = ends(after), ends(before)
    return low <= least and most <= high


class _Copier(ModelCopier):
    """Hands on what goes into a sum, or into an activation, in place of what comes out."""

    def __init__(self, handed_on: Mapping[int, int]) -> None:
        super().__init__()
        self._handed_on = handed_on

    def call(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """One of its inputs, or what the call was."""
        place = self._handed_on.get(id(operation))
        if place is None:
            return super().call(operation, *args, **kwargs)
        tensors = [each for each in keras.tree.flatten((args, kwargs)) if isinstance(each, keras.KerasTensor)]
        return tensors[place]
