"""Trained ranges and grids that travel through the converter as fake quantization, and are taken out of the file again.

In a graph that is converted without optimizations, each fake quantization becomes a QUANTIZE and a DEQUANTIZE between
float operators. The pair says which tensor has which range, which kernel lies on which grid, and keeps the converter
from folding what comes behind a quantizer into what comes before it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfopt.config import require
from tfopt.tflite.grids import Grid
from tfopt.tflite.ranges import Range, check_range


def marker_range(limits: Range, activation_bits: int) -> Range:
    """The range to give `tf.quantization.fake_quant_with_min_max_vars(x, *range, num_bits=8)` in a marked graph.

    The converter knows 8 bits only. The range of 16 bits, which is symmetric, goes into one whose zero point is
    an integer, so that it comes out as it went in.

    Args:
      limits: trained, real (lowest, highest) value.
      activation_bits: 8 or 16.

    >>> marker_range((-0.5, 2.0), 16)
    (-2.0, 1.984375)
    """
    check_range("a marker", limits)
    if activation_bits == 8:
        return limits
    largest = max(-limits[0], limits[1])
    return -largest, largest * 127 / 128


def strip_markers(content: bytes, activation_bits: int) -> tuple[bytes, dict[str, Range], dict[str, Grid]]:
    """Takes the markers out of a file.

    Args:
      content: a .tflite file that was converted without optimizations, one marker where each trained quantizer
        stands; on activations the range is that of `marker_range`, on constants that of their own 8 or 4 bits.
      activation_bits: as for `marker_range`.

    Returns:
      The same network in float32 without markers, its marked constants rounded; ranges of activations by tensor name,
      for `quantize_file`; and the grids of constants, kernels and others. The tensors that kernels with no scale of
      their own make have no range, unless they were marked.

    Raises:
      ValueError: there is no marker, or one tensor has two of different ranges.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    require(len(model.subgraphs) == 1, f"the file has {len(model.subgraphs)} graphs, loops among them: expected one")
    graph = model.subgraphs[0]
    kinds = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in graph.operators]
    pairs = list(zip(kinds, graph.operators, strict=True))
    codes = schema.BuiltinOperator
    marked = {op.outputs[0]: op.inputs[0] for kind, op in pairs if kind == codes.QUANTIZE}
    sources: dict[int, int] = {}
    ranges: dict[str, Range] = {}
    grids: dict[str, Grid] = {}
    for kind, operator in pairs:
        if kind == codes.DEQUANTIZE and operator.inputs[0] in marked:
            source, marker = marked[operator.inputs[0]], graph.tensors[operator.inputs[0]]
            sources[operator.outputs[0]] = source = sources.get(source, source)
            name, buffer = graph.tensors[source].name.decode(), model.buffers[graph.tensors[source].buffer]
            if buffer.data is not None and len(buffer.data):
                grids[name] = _round_constant(graph.tensors[source], buffer, marker)
                continue
            found = _range(marker.quantization, activation_bits)
            require(
                np.allclose(ranges.setdefault(name, found), found, rtol=1e-5, atol=0),
                f"the tensor {name!r} has two trained ranges, {ranges[name]} and {found}: LiteRT has one scale for it. "
                "Train both with one quantizer",
            )
    require(bool(sources), "the file has no markers: convert a graph of fake quantization, without optimizations")
    graph.operators = []
    for kind, operator in pairs:
        operator.inputs = [sources.get(i, i) for i in operator.inputs]
        if kind == codes.TRANSPOSE and graph.tensors[operator.inputs[0]].name.decode() in grids:
            _transpose_constant(model, operator, grids)
        elif operator.outputs[0] not in marked and operator.outputs[0] not in sources:
            graph.operators.append(operator)
    graph.outputs = [sources.get(i, i) for i in graph.outputs]
    for signature in model.signatureDefs or []:
        for each in signature.outputs:
            each.tensorIndex = sources.get(each.tensorIndex, each.tensorIndex)
    _drop_unused(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)), ranges, grids


def _range(stored: schema.QuantizationParametersT, activation_bits: int) -> Range:
    scale, zero = float(stored.scale[0]), int(stored.zeroPoint[0])
    if activation_bits == 8:
        return -zero * scale, (255 - zero) * scale
    return -128 * scale, 128 * scale


def _round_constant(constant: schema.TensorT, buffer: schema.BufferT, marker: schema.TensorT) -> Grid:
    """Rounds a constant as its marker says, in place."""
    bits = 4 if marker.type == schema.TensorType.UINT4 else 8
    stored = marker.quantization
    grid = Grid(bits, np.asarray(stored.scale, np.float32))
    values = np.frombuffer(bytes(buffer.data), np.float32).reshape(constant.shape)
    zero, step = int(stored.zeroPoint[0]), grid.along(stored.quantizedDimension, values.ndim)
    integers = np.clip(np.rint(values / step) + zero, 0, 2**bits - 1) - zero
    buffer.data = (integers * step).astype(np.float32).view(np.uint8).ravel()
    return grid


def _transpose_constant(model: schema.ModelT, operator: schema.OperatorT, grids: dict[str, Grid]) -> None:
    """Transposes a constant, such as the kernel of a transposed convolution; the marker kept the converter from it."""
    constant, axes, result = (model.subgraphs[0].tensors[i] for i in (*operator.inputs, *operator.outputs))
    values = np.frombuffer(bytes(model.buffers[constant.buffer].data), np.float32).reshape(constant.shape)
    order = np.frombuffer(bytes(model.buffers[axes.buffer].data), np.int32)
    buffer = schema.BufferT(data=np.ascontiguousarray(values.transpose(order)).view(np.uint8).ravel())
    result.buffer, result.shape = len(model.buffers), values.transpose(order).shape
    model.buffers.append(buffer)
    grids[result.name.decode()] = grids[constant.name.decode()]


def _drop_unused(model: schema.ModelT) -> None:
    """Drops the tensors that no operator names any more, and numbers the others anew."""
    graph = model.subgraphs[0]
    used = {*graph.inputs, *graph.outputs, *(i for op in graph.operators for i in (*op.inputs, *op.outputs))}
    kept = [i for i in range(len(graph.tensors)) if i in used]
    new: Mapping[int, int] = {-1: -1} | {old: i for i, old in enumerate(kept)}

    def renumber(indices: Sequence[int]) -> list[int]:
        return [new[i] for i in indices]

    graph.tensors = [graph.tensors[i] for i in kept]
    graph.inputs, graph.outputs = renumber(graph.inputs), renumber(graph.outputs)
    for operator in graph.operators:
        operator.inputs, operator.outputs = renumber(operator.inputs), renumber(operator.outputs)
    for signature in model.signatureDefs or []:
        for each in (*signature.inputs, *signature.outputs):
            each.tensorIndex = new[each.tensorIndex]
