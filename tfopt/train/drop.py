"""`with_dropout`, `with_stochastic_depth`: what a model that exists drops while it trains."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers as keras_layers

from tfopt.config import require, require_fraction
from tfopt.copies import ModelCopier, copy_layer, copy_trainable
from tfopt.graph import Graph, Node, Ref, deep_graphs, flatten
from tfopt.variables import LayerSelection, select_layers

_DROPOUTS = (
    keras_layers.Dropout,
    keras_layers.SpatialDropout1D,
    keras_layers.SpatialDropout2D,
    keras_layers.SpatialDropout3D,
)
# Whole channels, as neighbouring pixels tell the same.
_SPATIAL = {
    keras_layers.Conv1D: keras_layers.SpatialDropout1D,
    keras_layers.Conv2D: keras_layers.SpatialDropout2D,
    keras_layers.Conv3D: keras_layers.SpatialDropout3D,
}


def with_dropout(model: keras.Model, rate: float = 0.2, layers: LayerSelection = None) -> keras.Model:
    """A copy of the model that drops a share of the inputs of some layers in training; else it is the same.

    Of a convolution's inputs whole channels are dropped. All layers are Keras' own, and files need no tfopt.

    Args:
      model: functional or Sequential, built. What it was compiled with, the copy is too, with a new optimizer.
      rate: the share, in [0, 1) and above 0.
      layers: names, or a predicate over layers, of those whose inputs are dropped; None: every dense layer, but not one
        that reads an input of the model or a dropout.

    Raises:
      ValueError: there is no such layer, or one that is named has a dropout before it already, or takes several
        inputs.

    Source: Srivastava et al., Dropout, 2014; Tompson et al., 2015, arXiv:1411.4280 (whole channels).

    >>> dense = [keras.layers.Dense(4, name="hidden"), keras.layers.Dense(2, name="out")]
    >>> model = with_dropout(keras.Sequential([keras.Input((3,)), *dense]), 0.5)
    >>> [layer.name for layer in model.layers]
    ['hidden', 'out_dropout', 'out']
    """
    _check_rate(rate)
    graph = flatten(model)
    chosen = {id(layer) for layer in select_layers(model, layers)}
    nodes = [node for node in graph.nodes if id(node.operation) in chosen]
    if layers is None:
        nodes = [node for node in nodes if isinstance(node.operation, keras_layers.Dense)]
        nodes = [node for node in nodes if (maker := graph.maker(node.inputs[0])) is not None and not _drops(maker)]
        require(
            bool(nodes),
            f"{model.name!r} has no dense layer behind others and without a dropout: name layers with layers=...",
        )
    for node in nodes:
        require(
            len(node.inputs) == 1 and bool(node.operation.weights),
            f"the layer {node.name!r} ({node.type}) takes {len(node.inputs)} inputs and has "
            f"{len(node.operation.weights)} weights; name layers with weights and one input",
        )
        before = graph.maker(node.inputs[0])
        require(
            before is None or not _drops(before),
            f"the layer {node.name!r} has the dropout {before.name if before else ''!r} before it: leave it out",
        )
    insert = {}
    for node in nodes:
        kind = next((_SPATIAL[each] for each in _SPATIAL if isinstance(node.operation, each)), keras_layers.Dropout)
        insert[id(node.operation)] = {0: kind(rate, name=f"{node.operation.name}_dropout")}
    return _inserted(model, insert)


@dataclasses.dataclass(frozen=True)
class Branch:
    """A branch that is added to a shortcut.

    Args:
      add: the sum.
      index: which of its inputs the branch is.
    """

    add: Node
    index: int


def with_stochastic_depth(model: keras.Model, rate: float = 0.2) -> keras.Model:
    """A copy of the model that leaves out whole residual branches, by chance for each example, while it trains.

    The rate grows linearly from the first branch to the last, which has the whole one. A branch that stays is scaled
    up, so that the model predicts as before without any. It is Keras' own Dropout with one number for each example;
    files need no tfopt.

    Args:
      model: functional or Sequential, built. What it was compiled with, the copy is too, with a new optimizer.
      rate: share of the examples that go past the last branch, in [0, 1) and above 0.

    Raises:
      ValueError: there are no residual branches, with the reasons.

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016, arXiv:1603.09382, equations 2, 4 and 5; scaled in
    training in place of prediction.

    >>> from tfopt.train.models import resnet8
    >>> model = with_stochastic_depth(resnet8((8, 8, 1), 2), 0.3)
    >>> [(layer.name, round(layer.rate, 3)) for layer in model.layers if "depth" in layer.name]
    [('stack1_add_depth', 0.1), ('stack2_add_depth', 0.2), ('stack3_add_depth', 0.3)]
    """
    _check_rate(rate)
    branches, reasons = residual_branches(flatten(model))
    said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "it has no sum of two tensors"
    require(bool(branches), f"{model.name!r} has no residual branch: {said}")
    insert = {}
    for number, branch in enumerate(branches, 1):
        shape = (None, *(1 for _ in branch.add.outputs[0].shape[1:]))
        layer = keras_layers.Dropout(
            rate * number / len(branches), noise_shape=shape, name=f"{branch.add.operation.name}_depth"
        )
        insert[id(branch.add.operation)] = {branch.index: layer}
    return _inserted(model, insert)


def residual_branches(graph: Graph) -> tuple[list[Branch], dict[str, str]]:
    """The branches of a graph that are added to shortcuts, in running order; and the sums that have none, and why.

    The shortcut is what the branch began with, or has fewer layers with weights since the two parted.
    """
    before: dict[Ref, frozenset[Node]] = {ref: frozenset() for ref in graph.inputs}
    branches: dict[int, Branch] = {}
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        own = frozenset([node]).union(*(before[ref] for ref in node.inputs))
        before.update(dict.fromkeys(node.outputs, own))
        if node.type != "Add" or len(node.inputs) != 2 or id(node.operation) in branches:
            continue
        one, other = node.inputs
        alone = [before[one] - before[other], before[other] - before[one]]
        weights = [sum(bool(getattr(each.operation, "weights", ())) for each in part) for part in alone]
        if one.shape != other.shape:
            reasons[node.name] = "its inputs have different shapes"
        elif weights[0] == weights[1]:
            reasons[node.name] = "its inputs have as many layers, so none of them is the shortcut"
        else:
            branches[id(node.operation)] = Branch(node, weights.index(max(weights)))
    return list(branches.values()), reasons


class _Inserter(ModelCopier):
    """Puts layers before inputs of operations."""

    def __init__(self, insert: Mapping[int, Mapping[int, keras.layers.Layer]]) -> None:
        super().__init__()
        self._insert = insert

    def call(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """The operation, of what the new layers make of its arguments."""
        new, number = self._insert.get(id(operation), {}), itertools.count()

        def through(value: Any) -> Any:
            if not isinstance(value, keras.KerasTensor):
                return value
            layer = new.get(next(number))
            return value if layer is None else layer(value)

        if new:
            args, kwargs = keras.tree.map_structure(through, (args, kwargs))
        return super().call(operation, *args, **kwargs)

    def sequence(self, layer: keras.layers.Layer, tensor: Any) -> Sequence[keras.layers.Layer]:
        """The new layers, then the layer."""
        return [*self._insert.get(id(layer), {}).values(), *super().sequence(layer, tensor)]


@deep_graphs()
def _inserted(model: keras.Model, insert: Mapping[int, Mapping[int, keras.layers.Layer]]) -> keras.Model:
    names = {layer.name for layer in model._flatten_layers()}
    taken = sorted(names & {layer.name for parts in insert.values() for layer in parts.values()})
    require(not taken, f"{model.name!r} has layers called {', '.join(taken)} already: it drops there")
    inserter = _Inserter(insert)
    copy = inserter.copy(model)
    for old, new in inserter.pairs():
        if not isinstance(old, keras.Model):
            copy_layer(old, new)
    copy_trainable(inserter)
    if model.compiled:
        copy.compile_from_config(model.get_compile_config())
    return copy


def _drops(node: Node) -> bool:
    return isinstance(node.operation, _DROPOUTS)


def _check_rate(rate: Any) -> None:
    require_fraction("rate", rate)
    require(rate > 0, "a rate of 0 drops nothing: leave this out")
