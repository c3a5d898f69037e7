"""What ai-edge-quantizer writes, put right where it errs."""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfopt.config import require
from tfopt.tflite.flatbuffer import FlatBuffer, Graph, Tensor
from tfopt.tflite.grids import Grid, channel_axis, kernels_of
from tfopt.tflite.quiet import quiet
from tfopt.tflite.ranges import KERNELS, Range, affine, kernel_operands

# Kernels that read 4-bit weights; the others get 4-bit integers in 8 bits.
_PACKED = ("CONV_2D", "FULLY_CONNECTED")
# ai-edge-quantizer does not know these operators, but one with the same rule for scales: for its eyes they are
# that one. Batch products are among them since it gives their constants a scale for each channel, which LiteRT does
# not read there: it computes nonsense, without a word.
_UNARY = {"ABS": "RELU", "EXP": "RELU", "LEAKY_RELU": "RELU", "LOG": "RELU", "RELU6": "RELU"}
_SAME_SCALE = ("DEPTH_TO_SPACE", "EXPAND_DIMS", "REDUCE_MAX", "REVERSE_V2", "SPACE_TO_DEPTH", "SQUEEZE", "TILE")
_COMMON = _UNARY | dict.fromkeys(_SAME_SCALE, "RESHAPE") | {"MINIMUM": "MAXIMUM", "BATCH_MATMUL": "SUB"}
# Which of them LiteRT's kernels compute, by the bits of activations; NEG only where zero points are zero.
_STANDS_FOR: dict[int, dict[str, str]] = {
    8: _COMMON | {"ELU": "RELU", "PRELU": "SUB", "RELU_N1_TO_1": "RELU"},
    16: _COMMON | {"NEG": "RELU"},
}
# The accumulators of 16-bit kernels are multiplied as numbers of 48 bits, those of 8-bit ones are of 32.
_BIAS_LIMITS = {8: 2**31 - 1, 16: 2**47 - 1}


def import_quantizer() -> ModuleType:
    """The package ai_edge_quantizer.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        # It talks while it is imported.
        with quiet():
            import ai_edge_quantizer.model_modifier
            import ai_edge_quantizer.params_generator
            import ai_edge_quantizer.quantizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"int16 activations are written by ai-edge-quantizer, and there is no module {error.name}: "
            "pip install 'tfopt[int16]'",
            name=error.name,
        ) from error
    return ai_edge_quantizer


def write_quantized(
    quantizer: ModuleType,
    file: FlatBuffer,
    ranges: Mapping[str, Range],
    grids: Mapping[str, Grid],
    activation_bits: int,
    float_io: bool,
) -> bytes:
    """Writes the quantized file.

    Args:
      quantizer: the package.
      file: in float32, of one graph.
      ranges: of every float tensor but kernels and biases, by name.
      grids: of every kernel, one scale for each output channel, by name.
      activation_bits: 8 or 16.
      float_io: leave inputs and outputs in float32.

    Raises:
      ValueError: the integers of a bias are too large for its kernel.
    """
    model = flatbuffer_utils.read_model(file.path)
    codes = [code.builtinCode for code in model.operatorCodes]
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    for each in model.operatorCodes:
        known_as = _STANDS_FOR[activation_bits].get(names[each.builtinCode], names[each.builtinCode])
        each.builtinCode = getattr(schema.BuiltinOperator, known_as)
    graph = file.graphs[0]
    recipe = _recipe(quantizer, graph, grids, activation_bits, float_io)
    statistics = {
        tensor.name: _statistics(np.array(ranges[tensor.name]).reshape(2, *[1] * len(tensor.shape)))
        for tensor in graph.tensors
        if tensor.name in ranges
    }
    for kernel, _, _ in kernels_of(graph):
        # The quantizer divides the largest weight by the largest integer.
        limit = 7 if _is_packed(graph, kernel, grids) else 127
        largest = grids[kernel.name].along(channel_axis(graph, kernel), len(kernel.shape)) * limit
        statistics[kernel.name] = _statistics(np.stack([-largest, largest]))
    generator = quantizer.params_generator.ParamsGenerator(model)
    parameters = generator.generate_quantization_parameters(recipe, statistics, enable_progress_bar=False)
    content = quantizer.model_modifier.ModelModifier(model).modify_model(parameters, enable_progress_bar=False)
    written = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for each, code in zip(written.operatorCodes, codes, strict=False):  # new ones are behind
        each.builtinCode = code
    _type_unread(written, graph, ranges, activation_bits)
    _write_biases(written, graph, activation_bits)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(written))


def _statistics(limits: np.ndarray) -> dict[str, np.ndarray]:
    return {"min": limits[0], "max": limits[1]}


def _is_packed(graph: Graph, kernel: Tensor, grids: Mapping[str, Grid]) -> bool:
    return grids[kernel.name].bits == 4 and kernel_operands(graph)[kernel.index].type in _PACKED


def _recipe(
    quantizer: ModuleType, graph: Graph, grids: Mapping[str, Grid], activation_bits: int, float_io: bool
) -> Any:
    names = quantizer.qtyping.TFLOperationName
    recipe = quantizer.recipe_manager.RecipeManager()
    recipe.add_static_config(".*", names.ALL_SUPPORTED, activation_bits, 8)
    for kernel, _, _ in kernels_of(graph):
        if _is_packed(graph, kernel, grids):
            for operator in graph.operators:
                if kernel.index in operator.inputs:
                    scope = f"^{re.escape(graph.tensors[operator.outputs[0]].name)};$"
                    recipe.add_static_config(scope, names(operator.type), activation_bits, 4)
    if float_io:
        for edge in (names.INPUT, names.OUTPUT):
            recipe.add_quantization_config(
                ".*", edge, algorithm_key=quantizer.algorithm_manager.AlgorithmName.NO_QUANTIZE
            )
    return recipe


def _type_unread(model: schema.ModelT, graph: Graph, ranges: Mapping[str, Range], activation_bits: int) -> None:
    """Quantizes outputs of operators that nobody reads: the quantizer leaves them in float32, beside integers."""
    read = {i for operator in graph.operators for i in operator.inputs} | set(graph.outputs)
    for tensor in graph.tensors:
        if tensor.name in ranges and tensor.data is None and tensor.index not in read:
            scale, zero = affine(ranges[tensor.name], activation_bits)
            stored = model.subgraphs[0].tensors[tensor.index]
            stored.type = schema.TensorType.INT16 if activation_bits == 16 else schema.TensorType.INT8
            stored.quantization = schema.QuantizationParametersT(scale=[scale], zeroPoint=[zero])


def _write_biases(model: schema.ModelT, graph: Graph, activation_bits: int) -> None:
    """Writes the biases anew: the quantizer cuts them at 32 bits, and lets those beyond change their sign."""
    biases = {
        operator.outputs: graph.tensors[operator.inputs[KERNELS[operator.type][1]]].data
        for operator in graph.operators
        if operator.type in KERNELS and max(operator.inputs[KERNELS[operator.type][1] :], default=-1) >= 0
    }
    tensors = model.subgraphs[0].tensors
    for operator in model.subgraphs[0].operators:
        values = biases.get(tuple(operator.outputs))
        if values is None:
            continue
        stored = tensors[operator.inputs[-1]]
        integers = np.rint(values / np.asarray(stored.quantization.scale, np.float64))
        largest = np.abs(integers).max(initial=0.0)
        require(
            largest <= _BIAS_LIMITS[activation_bits],
            f"the bias {stored.name.decode()!r} needs integers up to {largest:.3g}, its kernel accumulates up to "
            f"{_BIAS_LIMITS[activation_bits]:.3g}: the weights of a channel are too small beside its bias. Train "
            "them with a scale of at least |bias| / (scale of the input * 2**30)",
        )
        dtype = np.int64 if activation_bits == 16 else np.int32
        model.buffers[stored.buffer].data = integers.astype(dtype).view(np.uint8)
