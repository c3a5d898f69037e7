"""How far two computations of one file's outputs are from each other, and LiteRT's own kernels."""

import dataclasses
import os
import pathlib
import tempfile
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfopt.record import Record
from tfopt.tflite.flatbuffer import IDENTIFIER, FlatBuffer, read_tflite
from tfopt.tflite.metric import Metric, decisions
from tfopt.tflite.run import predict_tflite

_PACKED = ("int4", "int2")


@dataclasses.dataclass(frozen=True)
class KernelNoise(Record):
    """How far LiteRT's own kernels are from each other on one file: XNNPACK from the built-in ones.

    No model can be nearer to the file than that on every device. XNNPACK computes each step exactly and rounds once,
    as fake quantization does; the built-in kernels multiply in fixed point and round twice, which shows most where
    steps are large, as with int4 weights. What both compute alike (int16 activations, look-up tables) shows nothing.

    Args:
      examples: how many were compared, the first ones.
      argmax_agreement: as in `Verification`.
      max_lsb: likewise.
      mean_lsb: likewise.
      max_abs_error: likewise.
      model_argmax_agreement: of the Keras model with the file, on the same examples.
      model_mean_lsb: likewise.
    """

    examples: int
    argmax_agreement: float | None
    max_lsb: float | None
    mean_lsb: float | None
    max_abs_error: float
    model_argmax_agreement: float | None
    model_mean_lsb: float | None


def kernel_noise(
    file: FlatBuffer,
    metric: Metric | None,
    inputs: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    received: dict[str, np.ndarray],
) -> KernelNoise:
    """Runs the file on both kinds of kernels.

    Args:
      file: the file.
      metric: tells what is decided.
      inputs: examples by input name.
      expected: what the model gives for them, by output name in the model's order.
      received: what the file gave.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "widened.tflite"
        path.write_bytes(_widened(file))
        fast, plain = (run_by_name(path, inputs, use_xnnpack) for use_xnnpack in (True, False))
    model = differences(file, metric, expected, received)
    return KernelNoise(
        examples=len(next(iter(inputs.values()))),
        **differences(file, metric, {name: fast[name] for name in expected}, plain),
        model_argmax_agreement=model["argmax_agreement"],
        model_mean_lsb=model["mean_lsb"],
    )


def run_by_name(
    path: str | os.PathLike[str], inputs: dict[str, np.ndarray], use_xnnpack: bool
) -> dict[str, np.ndarray]:
    """The file's outputs by name, even where there is only one."""
    outputs = predict_tflite(path, inputs, use_xnnpack)
    return outputs if isinstance(outputs, dict) else {name: outputs for name in read_tflite(path).outputs}


def differences(
    file: FlatBuffer, metric: Metric | None, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Compares outputs by name; decisions are those of the first of `ours`. The keys are fields of `Verification`."""
    errors = {name: np.abs(values.astype(np.float64) - theirs[name]).ravel() for name, values in ours.items()}
    steps = [values / step for name, values in errors.items() if (step := _step(file, name)) is not None]
    lsb = np.concatenate(steps) if len(steps) == len(errors) else None
    first = next(iter(ours))
    decided = decisions(metric, ours[first])
    return {
        "argmax_agreement": None if decided is None else float(np.mean(decided == decisions(metric, theirs[first]))),
        "max_lsb": None if lsb is None else float(lsb.max()),
        "mean_lsb": None if lsb is None else float(lsb.mean()),
        "max_abs_error": max(float(values.max()) for values in errors.values()),
    }


def _step(file: FlatBuffer, output: str) -> float | None:
    """The scale of an output, or of the integers that it is converted from; None where it is computed in float."""
    main = file.graphs[0]
    converted = {each.outputs[0]: each.inputs[0] for each in main.operators if each.type == "DEQUANTIZE"}
    index = file.signature.outputs[output]
    quantization = main.tensors[converted.get(index, index)].quantization
    return None if quantization is None else float(quantization.scales[0])


def _widened(file: FlatBuffer) -> bytes:
    """The file with the same integers in int8 where weights are int4 or int2.

    XNNPACK leaves most operators with packed weights to the built-in kernels, which would be compared with themselves.
    """
    content = pathlib.Path(file.path).read_bytes()
    packed = [
        (number, tensor.index, tensor.buffer, tensor.data)
        for number, graph in enumerate(file.graphs)
        for tensor in graph.tensors
        if tensor.dtype in _PACKED and tensor.data is not None
    ]
    if not packed:
        return content
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for number, index, buffer, integers in packed:
        model.subgraphs[number].tensors[index].type = schema.TensorType.INT8
        model.buffers[buffer].data = integers.view(np.uint8).ravel()
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
