"""Compares a file with its Keras model layer by layer."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.record import Record
from tfopt.tflite.flatbuffer import FlatBuffer
from tfopt.tflite.model import call_named, input_specs
from tfopt.tflite.run import open_interpreter, run_batches

# The interpreter cannot show what these give: it lies in the graphs that they run.
_CONTROL_FLOW = ("WHILE", "IF", "CALL_ONCE")


@dataclasses.dataclass(frozen=True)
class LayerError(Record):
    """How far one layer's output in the file is from the Keras model's.

    Args:
      name: of the layer; inside a nested model "model/layer".
      tensor: the file's tensor that holds the layer's output.
      error: relative RMS error, rms(keras - file) / max(rms(keras), rms(file)), at least 0.
      fused: earlier layers that the file computes in the same operator; a fault can lie in them too.
    """

    name: str
    tensor: str
    error: float
    fused: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """One call of a layer: where it stands in the graph, and what it gave."""

    name: str
    scope: tuple[str, ...]
    inputs: list[tf.Tensor]
    output: tf.Tensor
    values: np.ndarray


def compare_layers(
    model: keras.Model, file: FlatBuffer, inputs: dict[str, np.ndarray], tolerance: float
) -> list[LayerError]:
    """The error of each layer whose output is found in the file, in the order of the graph.

    A layer's output is the last tensor that carries the layer's scope in its name, or the file's output where
    it is the model's. Of layers that were fused one is compared: the one that the tensor is closest to, or if
    none is within `tolerance`, the last one that its name tells of. A layer is left out when it differs and
    all that follows from it does not: then the file computes it in another way (part of a BatchNorm folded
    into the next convolution, for example).

    Args:
      model: computes in float32.
      file: exported from that model.
      inputs: a handful of examples by input name.
      tolerance: relative RMS error above which a layer counts as different, above 0.
    """
    calls, outputs = _trace(model, inputs)
    tensors = _run(file, inputs)
    found = _match(calls, outputs, tensors, file)
    errors: dict[int, tuple[LayerError, tf.Tensor]] = {}
    for index, members in _groups(calls, found, tensors).items():
        errors_of = {i: _relative_rms(calls[i].values, tensors[index]) for i in members}
        chosen = _closest(errors_of, [i for i in members if found.get(i) == index], tolerance)
        entry = LayerError(
            name=calls[chosen].name,
            tensor=file.graphs[0].tensors[index].name,
            error=errors_of[chosen],
            fused=[calls[i].name for i in members if i < chosen],
        )
        errors[chosen] = entry, calls[chosen].output
    return _without_artefacts(errors, tolerance)


def _trace(model: keras.Model, inputs: dict[str, np.ndarray]) -> tuple[list[_Call], dict[str, int]]:
    """Runs the model as a graph, as the export does: layers get the scopes that the file's names have.

    Returns:
      The calls of layers in order of completion, and which call made each output, by output name.
    """
    seen: list[tuple[str, str, list[tf.Tensor], tf.Tensor]] = []
    named: dict[str, tf.Tensor] = {}
    specs = input_specs(model)
    size = len(next(iter(inputs.values())))
    signature = [tf.TensorSpec((size, *inputs[s.name].shape[1:]), s.dtype, name=s.name) for s in specs]

    @tf.function(input_signature=signature, autograph=False)
    def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
        graph = tf.compat.v1.get_default_graph()
        named.update(call_named(model, list(tensors)))
        # The body of a loop is a graph of its own, whose tensors cannot be had outside of it.
        seen[:] = [each for each in seen if each[3].graph is graph]
        return [each[3] for each in seen]

    inner = model._flatten_layers(include_self=False)
    layers = [layer for layer in inner if not isinstance(layer, keras.layers.InputLayer)]
    path: list[str] = []
    try:
        for layer in layers:
            object.__setattr__(layer, "call", _recorder(layer, path, seen))
        values = run.get_concrete_function()(*[tf.constant(inputs[spec.name]) for spec in specs])
    finally:
        for layer in layers:
            if "call" in vars(layer):
                object.__delattr__(layer, "call")
    calls: list[_Call] = []
    known: dict[int, int] = {}
    for (name, scope, given, output), value in zip(seen, values, strict=True):
        if id(output) in known:
            continue  # a nested model gives what its last layer gave, an inactive Dropout what it received
        known[id(output)] = len(calls)
        calls.append(_Call(name, tuple(scope.split("/")[1:]), given, output, value.numpy().reshape(size, -1)))
    return calls, {name: known[id(tensor)] for name, tensor in named.items() if id(tensor) in known}


def _recorder(layer: keras.Layer, path: list[str], seen: list) -> Callable[..., Any]:
    original = layer.call

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        path.append(layer.name)
        try:
            output = original(*args, **kwargs)
        finally:
            path.pop()
        if isinstance(output, tf.Tensor):
            given = [each for each in keras.tree.flatten([args, kwargs]) if isinstance(each, tf.Tensor)]
            seen.append(("/".join([*path, layer.name]), tf.get_current_name_scope(), given, output))
        return output

    return call


def _run(file: FlatBuffer, inputs: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
    """All computed tensors of the main graph, by index, as real values of shape (examples, -1)."""
    main = file.graphs[0]
    interpreter = open_interpreter(file, use_xnnpack=False, preserve_all=True)
    computed = [
        main.tensors[i]
        for operator in main.operators
        if operator.type not in _CONTROL_FLOW
        for i in operator.outputs
        if main.tensors[i].is_float or main.tensors[i].quantization is not None
    ]
    parts: dict[int, list[np.ndarray]] = {tensor.index: [] for tensor in computed}
    batch = next(iter(file.inputs.values())).shape[0]
    for size in run_batches(interpreter, file, inputs):
        rows = batch if batch > 0 else size
        for tensor in computed:
            values = tensor.dequantize(interpreter.get_tensor(tensor.index))
            if values.size % rows == 0:
                parts[tensor.index].append(values.reshape(rows, -1)[:size])
    return {index: np.concatenate(chunks) for index, chunks in parts.items() if chunks}


def _match(
    calls: list[_Call], outputs: dict[str, int], tensors: dict[int, np.ndarray], file: FlatBuffer
) -> dict[int, int]:
    """The file's tensor for each call that has one: call -> tensor index."""
    found: dict[int, int] = {}
    for index in tensors:  # in running order, so that a layer's last tensor stays
        scopes = [part.split("/")[1:] for part in file.graphs[0].tensors[index].name.split(";")]
        for i, call in enumerate(calls):
            inside = any(tuple(scope[: len(call.scope)]) == call.scope for scope in scopes)
            if call.scope and inside and call.values.shape == tensors[index].shape:
                found[i] = index
    for name, i in outputs.items():
        index = file.signature.outputs[name]
        if index in tensors and calls[i].values.shape == tensors[index].shape:
            found[i] = index
    return found


def _groups(calls: list[_Call], found: dict[int, int], tensors: dict[int, np.ndarray]) -> dict[int, list[int]]:
    """The calls that each matched tensor may stand for: those matched, and the chain behind that was not."""
    groups: dict[int, list[int]] = {}
    for i, index in found.items():
        groups.setdefault(index, []).append(i)
    for index, members in groups.items():
        members.sort()
        while True:
            last = calls[members[-1]].output
            consumers = [i for i, call in enumerate(calls) if any(each is last for each in call.inputs)]
            if len(consumers) != 1 or consumers[0] in found:
                break
            if consumers[0] <= members[-1] or calls[consumers[0]].values.shape != tensors[index].shape:
                break
            members.append(consumers[0])
    return groups


def _closest(errors: dict[int, float], named: list[int], tolerance: float) -> int:
    best = min(errors.values())
    if best > tolerance:
        return max(named)
    return max(i for i, error in errors.items() if error <= best * 1.0001)


def _without_artefacts(errors: dict[int, tuple[LayerError, tf.Tensor]], tolerance: float) -> list[LayerError]:
    compared = {id(output): entry.error for entry, output in errors.values()}
    kept = []
    for _, (entry, output) in sorted(errors.items()):
        after = _next_errors(output, compared)
        if entry.error <= tolerance or not after or max(after) > tolerance:
            kept.append(entry)
    return kept


def _next_errors(output: tf.Tensor, compared: dict[int, float]) -> list[float]:
    """Errors of the compared tensors that are reached first from `output` along the graph."""
    pending, visited, reached = [output], {id(output)}, []
    while pending:
        for operation in pending.pop().consumers():
            for tensor in operation.outputs:
                if id(tensor) in visited:
                    continue
                visited.add(id(tensor))
                if id(tensor) in compared:
                    reached.append(compared[id(tensor)])
                else:
                    pending.append(tensor)
    return reached


def _relative_rms(expected: np.ndarray, received: np.ndarray) -> float:
    expected, received = expected.astype(np.float64), received.astype(np.float64)
    size = max(np.sqrt(np.mean(expected**2)), np.sqrt(np.mean(received**2)))
    return float(np.sqrt(np.mean((expected - received) ** 2)) / size) if size else 0.0
