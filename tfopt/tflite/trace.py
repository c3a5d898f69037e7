"""What each layer of a Keras model gives, traced as a graph as the export does it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.tflite.model import call_named, input_specs

_SAME_VALUES = ("ExpandDims", "Identity", "IdentityN", "Reshape", "Squeeze")


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: where it stands in the graph, and what it gave.

    Args:
      name: of the layer; inside a nested model "model/layer".
      position: among all calls, in order of completion; the same whenever the model is traced.
      scopes: name scopes of the layer, and of those around it that give its output as their own.
      inputs: the tensors among its arguments.
      output: the tensor that it gave.
      values: of the output, shape (examples, -1).
      is_rounded: whether the layer itself rounds its output to the grid of integers.
    """

    name: str
    position: int
    scopes: list[tuple[str, ...]]
    inputs: list[tf.Tensor]
    output: tf.Tensor
    values: np.ndarray
    is_rounded: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """The calls of one run of a model.

    Args:
      calls: in order of completion, those left out that give what they received or what another gave.
      outputs: the index of the call that made each output, by output name.
      fake_quantized: whether the model rounds its tensors to the grids of integers.
    """

    calls: list[Call]
    outputs: dict[str, int]
    fake_quantized: bool


def trace_calls(
    model: keras.Model, inputs: Mapping[str, np.ndarray], given: Mapping[int, np.ndarray] | None = None
) -> Trace:
    """Runs the model as a graph and records the calls of its layers, with the scopes that the file's names have.

    Args:
      model: functional, Sequential or subclassed; its layers are left as they were.
      inputs: examples by input name.
      given: by position of a call, what is passed on in place of its output, of as many values; the call still
        records what it gave itself.
    """
    seen: list[tuple[int, str, str, list[tf.Tensor], tf.Tensor]] = []
    named: dict[str, tf.Tensor] = {}
    specs = input_specs(model)
    size = len(next(iter(inputs.values())))
    signature = [tf.TensorSpec((size, *inputs[s.name].shape[1:]), s.dtype, name=s.name) for s in specs]

    @tf.function(input_signature=signature, autograph=False)
    def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
        graph = tf.compat.v1.get_default_graph()
        named.update(call_named(model, list(tensors)))
        # The body of a loop is a graph of its own, whose tensors cannot be had outside of it.
        seen[:] = [each for each in seen if each[-1].graph is graph]
        return [each[-1] for each in seen]

    inner = model._flatten_layers(include_self=False)
    layers = [layer for layer in inner if not isinstance(layer, keras.layers.InputLayer)]
    path: list[str] = []
    replaced = {position: tf.constant(values) for position, values in (given or {}).items()}
    try:
        for layer in layers:
            object.__setattr__(layer, "call", _recorder(layer, path, seen, replaced))
        function = run.get_concrete_function()
        values = function(*[tf.constant(inputs[spec.name]) for spec in specs])
    finally:
        for layer in layers:
            if "call" in vars(layer):
                object.__delattr__(layer, "call")
    calls: list[Call] = []
    known: dict[int, int] = {}
    for (position, name, scope, received, output), value in zip(seen, values, strict=True):
        if not value.ndim or len(value) % size:
            continue  # of no example: a constant inside a layer
        within = tuple(scope.split("/")[1:])
        if id(output) in known:
            # A nested model gives what its last layer gave, an inactive Dropout what it received.
            calls[known[id(output)]].scopes.append(within)
            continue
        known[id(output)] = len(calls)
        flat = value.numpy().reshape(size, -1)
        calls.append(Call(name, position, [within], received, output, flat, _is_rounded(output)))
    outputs = {name: known[id(tensor)] for name, tensor in named.items() if id(tensor) in known}
    return Trace(calls, outputs, any(node.op.startswith("FakeQuant") for node in _nodes(function.graph)))


def _is_rounded(output: tf.Tensor) -> bool:
    """Whether fake quantization gives a tensor; ranges that are still watched are a condition around it."""
    while output.op.type in _SAME_VALUES:
        output = output.op.inputs[0]
    return output.op.type.startswith("FakeQuant") or output.op.type in ("If", "StatelessIf")


def _nodes(graph: tf.Graph) -> list[Any]:
    """The nodes of a graph, and of the functions that it calls."""
    written = graph.as_graph_def()
    return [node for nodes in (written.node, *(each.node_def for each in written.library.function)) for node in nodes]


def _recorder(layer: keras.Layer, path: list[str], seen: list, replaced: Mapping[int, tf.Tensor]) -> Callable[..., Any]:
    original = layer.call

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        path.append(layer.name)
        try:
            output = original(*args, **kwargs)
        finally:
            path.pop()
        if not isinstance(output, tf.Tensor):
            return output
        received = [each for each in keras.tree.flatten([args, kwargs]) if isinstance(each, tf.Tensor)]
        position = len(seen)
        seen.append((position, "/".join([*path, layer.name]), tf.get_current_name_scope(), received, output))
        if position not in replaced:
            return output
        # Captured rather than written into the graph, whose size is limited.
        other = tf.reshape(tf.identity(replaced[position]), tf.shape(output))
        other.set_shape(output.shape)
        return other

    return call
