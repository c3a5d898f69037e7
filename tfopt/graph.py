"""A Keras model as a flat list of operations: nested models inlined, raw operators in sight, consumers known."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from tfopt.config import require

# Python's own limit is 1,000; deeper recursion costs memory of the heap alone since Python 3.11.
_DEEP = 50_000


@contextlib.contextmanager
def deep_graphs() -> Iterator[None]:
    """Room for Keras, which calls itself once for each layer on the longest path when it builds a model.

    EfficientNetV2L with fake quantization has more than a thousand.

    >>> with deep_graphs():
    ...     sys.getrecursionlimit() >= 50_000
    True
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@dataclasses.dataclass(frozen=True)
class Ref:
    """A tensor of the flat graph: its number, and its shape with None for open sizes."""

    key: int
    shape: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of an operation.

    Args:
      operation: a Keras layer, or a raw operator such as the one behind `x + 1`.
      name: the operation's, after those of the nested models around it: "encoder/conv".
      args: positional arguments, with a `Ref` in place of each tensor.
      kwargs: named arguments likewise.
      outputs: the tensors it makes.
    """

    operation: keras.Operation
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Ref, ...]

    @property
    def type(self) -> str:
        """The name of the operation's class."""
        return type(self.operation).__name__

    @functools.cached_property
    def inputs(self) -> list[Ref]:
        """The tensors among the arguments, in order."""
        return [each for each in keras.tree.flatten([self.args, dict(self.kwargs)]) if isinstance(each, Ref)]


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The nodes of a model in running order, with its inputs and outputs in the model's order."""

    nodes: tuple[Node, ...]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]

    @functools.cached_property
    def _consumers(self) -> dict[Ref, list[Node]]:
        readers: dict[Ref, list[Node]] = {}
        for node in self.nodes:
            for ref in dict.fromkeys(node.inputs):
                readers.setdefault(ref, []).append(node)
        return readers

    @functools.cached_property
    def _makers(self) -> dict[Ref, Node]:
        return {ref: node for node in self.nodes for ref in node.outputs}

    def maker(self, ref: Ref) -> Node | None:
        """The node that makes a tensor; None for an input of the model."""
        return self._makers.get(ref)

    def consumers(self, ref: Ref) -> list[Node]:
        """The nodes that read a tensor, one that reads it twice once."""
        return self._consumers.get(ref, [])

    def only_consumer(self, ref: Ref) -> Node | None:
        """The one node that reads a tensor; None where there are several, or it is an output of the model."""
        found = self.consumers(ref)
        return found[0] if len(found) == 1 and ref not in self.outputs else None

    def calls(self, operation: keras.Operation) -> int:
        """How often an operation is called: more than once where a layer is shared."""
        return sum(node.operation is operation for node in self.nodes)


def flatten(model: keras.Model) -> Graph:
    """The flat graph of a functional or Sequential model.

    Raises:
      ValueError: for a subclassed model, at any depth, and for one that is not built.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> [node.name for node in flatten(model).nodes]
    ['head']
    """
    nodes: list[Node] = []
    count = 0

    def new(tensor: keras.KerasTensor) -> Ref:
        nonlocal count
        count += 1
        return Ref(count, tuple(tensor.shape))

    def walk(inner: Any, scope: dict[int, Ref], prefix: str) -> None:
        for node in _in_order(inner):
            operation = node.operation
            name = prefix + operation.name
            if isinstance(operation, keras.Model):
                nested = functional(operation, name)
                inside = {
                    id(its): scope[id(ours)] for its, ours in zip(nested._inputs, node.input_tensors, strict=True)
                }
                walk(nested, inside, name + "/")
                for its, ours in zip(nested._outputs, node.outputs, strict=True):
                    scope[id(ours)] = inside[id(its)]
                continue
            for tensor in node.outputs:
                scope[id(tensor)] = new(tensor)

            def to_ref(value: Any) -> Any:
                return scope[id(value)] if isinstance(value, keras.KerasTensor) else value

            args, kwargs = node.arguments.convert(to_ref)
            outputs = tuple(scope[id(tensor)] for tensor in node.outputs)
            nodes.append(Node(operation, name, tuple(args), kwargs, outputs))

    outer = functional(model, model.name)
    scope = {id(tensor): new(tensor) for tensor in outer._inputs}
    inputs = tuple(scope[id(tensor)] for tensor in outer._inputs)
    walk(outer, scope, "")
    return Graph(tuple(nodes), inputs, tuple(scope[id(tensor)] for tensor in outer._outputs))


def functional(model: keras.Model, name: str) -> Any:
    """The functional model that a model is or has inside.

    Raises:
      ValueError: it is subclassed, or a Sequential model that is not built.
    """
    if isinstance(model, keras.Sequential):
        require(
            getattr(model, "_functional", None) is not None,
            f"the Sequential model {name!r} is not built, so it has no graph: give it a keras.Input as first layer",
        )
        return model._functional
    require(
        hasattr(model, "_run_through_graph"),
        f"{name!r} is a subclassed model ({type(model).__name__}): it has no graph of layers to rewrite. Build it "
        "with the functional API: outputs = layers(keras.Input(...)), keras.Model(inputs, outputs)",
    )
    return model


def _in_order(model: Any) -> Iterable[Any]:
    """The calls inside a functional model, producers first."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.operation is not None and not node.is_input:
                yield node
