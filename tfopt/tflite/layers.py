"""Compares a file with its Keras model layer by layer."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfopt.record import Record
from tfopt.tflite.flatbuffer import FlatBuffer, Tensor
from tfopt.tflite.interpreter import open_interpreter, run_batches
from tfopt.tflite.trace import Call, Trace, trace_calls

# These give the values that they receive, in another shape or type.
_VIEWS = ("DEQUANTIZE", "EXPAND_DIMS", "QUANTIZE", "RESHAPE", "SQUEEZE")
# The part of a layer's error that is found in what follows where the layer is truly wrong.
_TRACE = 0.3
# The interpreter cannot show what these give: it lies in the graphs that they run.
_CONTROL_FLOW = ("WHILE", "IF", "CALL_ONCE")


@dataclasses.dataclass(frozen=True)
class LayerError(Record):
    """How far one layer's output in the file is from the Keras model's.

    Args:
      name: of the layer; inside a nested model "model/layer".
      tensor: the file's tensor that holds the layer's output.
      error: relative RMS error, rms(keras - file) / max(rms(keras), rms(file)), at least 0, with what the layer
        inherits from those before it.
      fused: earlier layers that the file computes in the same operator; a fault can lie in them too.
      lsb: what the layer adds itself: rms(keras - file) in quantization steps of the tensor, where the Keras layer
        receives the file's values; None for a float tensor.
    """

    name: str
    tensor: str
    error: float
    fused: list[str]
    lsb: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class _Pair:
    """A call, and the tensor of the file that holds its output."""

    call: Call
    tensor: Tensor
    error: float
    fused: list[str]


def compare_layers(
    model: keras.Model, file: FlatBuffer, inputs: dict[str, np.ndarray], tolerance: float
) -> list[LayerError]:
    """The error of each layer whose output is found in the file, in the order of the graph.

    A layer's output is, of the tensors that carry the layer's scope in their names, the closest one within
    `tolerance`, else the last; or the file's output where it is the model's. Of layers that were fused one is
    compared: the one that the tensor is closest to, or if none is within `tolerance`, the last one that its name tells
    of. In a model with fake quantization it is the last, the quantizer; never one that only passes on what it received.
    A layer is left out when it differs and next to nothing of that is in what follows from it: then the file computes
    it in another way (part of a BatchNorm folded into the next convolution, for example).

    Args:
      model: computes in float32.
      file: exported from that model.
      inputs: a handful of examples by input name.
      tolerance: relative RMS error above which a layer counts as different, above 0.
    """
    trace = trace_calls(model, inputs)
    calls, values = trace.calls, _run(file, inputs)
    found = _match(trace, values, file, tolerance)
    pairs: dict[int, _Pair] = {}
    for index, members in _groups(calls, found, values).items():
        tensor = file.graphs[0].tensors[index]
        errors = {i: _relative_rms(calls[i].values, values[index]) for i in members}
        named = [i for i in members if found.get(i) == index]
        is_rounded = trace.fake_quantized and tensor.quantization is not None
        chosen = members[-1] if is_rounded else _closest(errors, named, tolerance)
        chosen = next(i for i in members if np.array_equal(calls[i].values, calls[chosen].values))
        pairs[chosen] = _Pair(calls[chosen], tensor, errors[chosen], [calls[i].name for i in members if i < chosen])
    kept = _without_artefacts([pairs[i] for i in sorted(pairs)], tolerance)
    own = _own_steps(model, inputs, kept, values, trace.fake_quantized)
    return [LayerError(p.call.name, p.tensor.name, p.error, p.fused, own.get(p.tensor.index)) for p in kept]


def _own_steps(
    model: keras.Model,
    inputs: dict[str, np.ndarray],
    pairs: list[_Pair],
    values: dict[int, np.ndarray],
    fake_quantized: bool,
) -> dict[int, float]:
    """By quantized tensor, its distance in steps from what the Keras layer makes of the file's values."""
    quantized = [pair for pair in pairs if pair.tensor.quantization is not None]
    if not quantized:
        return {}
    made = _made(model, inputs, pairs, values)
    # What a model with fake quantization leaves unrounded, such as a branch of a concatenation, it cuts later.
    loose = [pair for pair in quantized if fake_quantized and not pair.call.is_rounded]
    cut = {
        pair.tensor.index
        for pair in loose
        if not np.array_equal(_cut(pair.tensor, made[pair.call.position]), made[pair.call.position])
    }
    if cut:
        made = _made(model, inputs, [pair for pair in pairs if pair.tensor.index not in cut], values)
    own = {}
    for pair in quantized:
        expected, received = made[pair.call.position], values[pair.tensor.index]
        if pair in loose:
            expected = _cut(pair.tensor, expected)
        own[pair.tensor.index] = _rms(expected - received) / _step(pair.tensor)
    return own


def _made(
    model: keras.Model, inputs: dict[str, np.ndarray], pairs: list[_Pair], values: dict[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """By call, what the Keras layer makes of the values that the file has before it."""
    given = {pair.call.position: values[pair.tensor.index] for pair in pairs}
    return {call.position: call.values for call in trace_calls(model, inputs, given).calls}


def _cut(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """Values within what a quantized tensor can hold, not rounded."""
    held = tensor.dequantize(tensor.quantize(values))
    return np.where(np.abs(held - values) > _step(tensor), held, values)


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


def _match(trace: Trace, values: dict[int, np.ndarray], file: FlatBuffer, tolerance: float) -> dict[int, int]:
    """The file's tensor for each call that has one: call -> tensor index."""
    calls = trace.calls
    scopes = {i: [part.split("/")[1:] for part in file.graphs[0].tensors[i].name.split(";")] for i in values}
    rescaled = {
        operator.outputs[0]: operator.inputs[0]
        for operator in file.graphs[0].operators
        if operator.type == "QUANTIZE" and file.graphs[0].tensors[operator.inputs[0]].quantization is not None
    }
    found: dict[int, int] = {}
    for i, call in enumerate(calls):
        for within in filter(None, call.scopes):
            inside = [
                index
                for index in values  # in running order
                if call.values.shape == values[index].shape
                and any(tuple(scope[: len(within)]) == within for scope in scopes[index])
            ]
            # The same integers on another grid may be cut there already, by the ReLU of a layer behind.
            inside = [index for index in inside if rescaled.get(index) not in inside]
            if inside:
                errors = {index: _relative_rms(call.values, values[index]) for index in inside}
                found[i] = _closest(errors, inside, tolerance)
                break
    for name, i in trace.outputs.items():
        index = file.signature.outputs[name]
        if index in values and calls[i].values.shape == values[index].shape:
            found[i] = index
    sources = _sources(file, values)
    return {i: sources.get(index, index) for i, index in found.items()}


def _sources(file: FlatBuffer, values: dict[int, np.ndarray]) -> dict[int, int]:
    """For each quantized tensor that was only reshaped or converted, where its values were computed."""
    sources: dict[int, int] = {}
    main = file.graphs[0]
    for operator in main.operators:
        if operator.type not in _VIEWS:
            continue
        given, made = operator.inputs[0], operator.outputs[0]
        is_quantized = given in values and main.tensors[given].quantization is not None
        if is_quantized and made in values and np.array_equal(values[given], values[made]):
            sources[made] = sources.get(given, given)
    return sources


def _groups(calls: list[Call], found: dict[int, int], tensors: dict[int, np.ndarray]) -> dict[int, list[int]]:
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
        return named[-1]
    return max(i for i, error in errors.items() if error <= best * 1.0001)


def _without_artefacts(pairs: list[_Pair], tolerance: float) -> list[_Pair]:
    compared = {id(pair.call.output): pair.error for pair in pairs}

    def is_sound(pair: _Pair) -> bool:
        after = _next_errors(pair.call.output, compared)
        return pair.error <= tolerance or not after or max(after) > min(tolerance, _TRACE * pair.error)

    return [pair for pair in pairs if is_sound(pair)]


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


def _step(tensor: Tensor) -> float:
    return float(tensor.quantization.scales[0]) if tensor.quantization is not None else 0.0


def _relative_rms(expected: np.ndarray, received: np.ndarray) -> float:
    size = max(_rms(expected), _rms(received))
    return _rms(expected.astype(np.float64) - received) / size if size else 0.0


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
