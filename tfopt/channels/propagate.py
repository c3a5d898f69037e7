"""Follows the channels of a model from layer to layer: which tensor, weight and setting holds which."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfopt.channels.costs import Bill, Term
from tfopt.channels.ids import Ties
from tfopt.graph import Graph, Node, Ref, flatten

OUTPUT = "its channels are outputs of the model"

# From the configuration's value and the mask over all ids to the new value.
Edit = Callable[[Any, np.ndarray], Any]


class Unknown(Exception):
    """Raised by a rule that does not know what becomes of the channels, with the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Producer:
    """A layer that makes channels of its own.

    Args:
      name: the layer's, after those of the nested models around it.
      layer: the layer.
      ids: of its channels.
      kernel: the variable with its filters, along `axis`.
      axis: of the filters, at least 0.
    """

    name: str
    layer: keras.layers.Layer
    ids: np.ndarray
    kernel: keras.Variable
    axis: int


class Flow:
    """What is known of the channels of a model.

    Attributes:
      graph: the flat graph.
      ties: of the ids.
      channels: by tensor, the ids along its last axis; None where that is open.
      producers: by the id of the layer, those that make channels, in running order.
      slices: by the id of a variable and an axis, the ids along it.
      edits: by the id of an operation and a key of its configuration, what becomes of the value.
      macs: the products that the layers compute.
      gains: of each BatchNormalization with a gamma: that variable and its ids.
      unknown: layers with weights that no rule knows, with the reason.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.ties = graph, Ties()
        self.channels: dict[Ref, np.ndarray | None] = {}
        self.producers: dict[int, Producer] = {}
        self.slices: dict[tuple[int, int], np.ndarray] = {}
        self.edits: dict[int, dict[str, Edit]] = {}
        self.macs: list[Term] = []
        self.gains: list[tuple[keras.Variable, np.ndarray]] = []
        self.unknown: dict[str, str] = {}
        self._calls: dict[tuple[int, int, int], np.ndarray] = {}

    def read(self, node: Node) -> np.ndarray:
        """The ids of the one tensor that a node reads.

        Raises:
          Unknown: it reads several, or one whose last axis is open.
        """
        (ids,) = self.read_all(node, count=1)
        return ids

    def read_all(self, node: Node, count: int | None = None) -> list[np.ndarray]:
        """The ids of every tensor that a node reads.

        Raises:
          Unknown: there are not `count`, or the last axis of one is open.
        """
        found = [self.channels[ref] for ref in node.inputs]
        if len(found) != (count or len(found)) or not found:
            raise Unknown(f"{node.name} ({node.type}) reads {len(found)} tensors, for which there is no rule")
        known = [ids for ids in found if ids is not None]
        if len(known) < len(found):
            raise Unknown(f"{node.name} ({node.type}) reads a tensor whose last axis has no fixed size")
        return known

    def produce(self, node: Node, kernel: keras.Variable, axis: int) -> np.ndarray:
        """The ids of the channels that a layer makes, the same at each of its calls."""
        layer, axis = node.operation, axis % len(kernel.shape)
        if id(layer) not in self.producers:
            ids = self.ties.new(kernel.shape[axis])
            self.producers[id(layer)] = Producer(node.name, layer, ids, kernel, axis)
        ids = self.producers[id(layer)].ids
        self.slice(kernel, axis, ids)
        return ids

    def slice(self, variable: keras.Variable, axis: int, ids: np.ndarray) -> None:
        """Says which channels lie along an axis; where that was said before, for a shared layer, both are tied."""
        key = id(variable), axis % len(variable.shape)
        if key in self.slices:
            self.ties.tie(self.slices[key], ids)
        self.slices[key] = ids

    def tie_calls(self, node: Node) -> None:
        """Ties what a node inside a nested model reads to what it read at an earlier call.

        A nested model takes the same channels at all its calls, even if it has no weights.
        """
        for position, ref in enumerate(node.inputs):
            if "/" in node.name and (ids := self.channels[ref]) is not None:
                first = self._calls.setdefault((id(node.operation), position, len(ids)), ids)
                self.ties.tie(first, ids)

    def edit(self, node: Node, key: str, change: Edit) -> None:
        """Says what becomes of a value in the configuration of a node's operation."""
        self.edits.setdefault(id(node.operation), {})[key] = change

    def count(self, node: Node, key: str, ids: np.ndarray) -> None:
        """Says that a value in the configuration is the number of these channels."""
        self.edit(node, key, lambda _, keep: int(np.count_nonzero(keep[ids])))

    def leave(self, node: Node, reason: str) -> None:
        """Freezes all that a node reads and makes."""
        for ref in node.inputs:
            if (ids := self.channels[ref]) is not None:
                self.ties.freeze(ids, reason)
        for ref in node.outputs:
            self.channels[ref] = self.frozen(ref, reason)
        if isinstance(node.operation, keras.layers.Layer) and node.operation.weights:
            self.unknown[node.name] = reason

    def frozen(self, ref: Ref, reason: str) -> np.ndarray | None:
        """New ids that must stay, for a tensor."""
        if not ref.shape or ref.shape[-1] is None:
            return None
        ids = self.ties.new(ref.shape[-1])
        self.ties.freeze(ids, reason)
        return ids

    def bill(self, model: keras.Model) -> Bill:
        """The costs as sums over counts of channels."""
        parameters = []
        for variable in model.weights:
            axes = {axis: self.slices.get((id(variable), axis)) for axis in range(len(variable.shape))}
            fixed = math.prod(size for axis, size in enumerate(variable.shape) if axes[axis] is None)
            parameters.append(Term(fixed, tuple(ids for ids in axes.values() if ids is not None)))
        channels = [Term(1, (producer.ids,)) for producer in self.producers.values()]
        return Bill(channels, parameters, self.macs)


def follow_channels(model: keras.Model) -> Flow:
    """Follows the channels through every layer of a model.

    Raises:
      ValueError: for a subclassed model, or one that is not built.

    >>> inputs = keras.Input((8, 8, 3))
    >>> first = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    >>> second = keras.layers.Conv2D(4, 3, padding="same", name="second")(inputs)
    >>> summed = keras.layers.Add()([first, second])
    >>> flow = follow_channels(keras.Model(inputs, keras.layers.Conv2D(2, 1)(summed)))
    >>> labels = flow.ties.classes().labels
    >>> [labels[producer.ids].tolist() for producer in flow.producers.values()]
    [[3, 4, 5, 6], [3, 4, 5, 6], [11, 12]]
    """
    # The rules are functions of a flow.
    from tfopt.channels.rules import rule_for

    flow = Flow(flatten(model))
    for ref in flow.graph.inputs:
        flow.channels[ref] = flow.frozen(ref, "its channels are inputs of the model")
    for node in flow.graph.nodes:
        flow.tie_calls(node)
        try:
            ids = rule_for(node)(flow, node)
        except Unknown as error:
            flow.leave(node, str(error))
            continue
        (output,) = node.outputs
        assert len(ids) == output.shape[-1], f"{node.name}: {len(ids)} ids for a tensor of {output.shape}"
        flow.channels[output] = ids
    for ref in flow.graph.outputs:
        if (made := flow.channels[ref]) is not None:
            flow.ties.freeze(made, OUTPUT)
    return flow
