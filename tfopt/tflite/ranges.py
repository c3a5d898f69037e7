"""Which range each activation tensor of a float .tflite file gets."""

import collections
import math
from collections.abc import Iterable, Mapping

from tfopt.config import require
from tfopt.tflite.flatbuffer import Graph, Operator, Tensor

Range = tuple[float, float]

# Operand numbers of the weights and of the bias.
KERNELS = {"CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "FULLY_CONNECTED": (1, 2), "TRANSPOSE_CONV": (1, 3)}

# LiteRT's kernels for these average integers, or pick them, without a look at scales: the output has the input's.
_AVERAGING = {"AVERAGE_POOL_2D", "RESIZE_BILINEAR"}
_PICKING = {
    *("BROADCAST_TO", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "GATHER_ND", "MAX_POOL_2D", "MIRROR_PAD", "PAD"),
    *("REDUCE_MAX", "REDUCE_MIN", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SLICE", "SPACE_TO_DEPTH"),
    *("SPLIT", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK"),
}
KEEPS_SCALE = _AVERAGING | _PICKING
# These cut values; what they get may be cut at the range of what they give before that.
_CUTTING = {"RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"}
# These take one of several inputs, which must have the output's scale.
MERGES = {"CONCATENATION", "DYNAMIC_UPDATE_SLICE", "MAXIMUM", "MINIMUM", "PACK", "PADV2", "SELECT", "SELECT_V2"}
# Output ranges that are written into the kernels, by the bits of activations.
_SYMMETRIC = (-32767 / 32768, 32767 / 32768)
FIXED: dict[int, dict[str, Range]] = {
    8: {"LOGISTIC": (0.0, 255 / 256), "SOFTMAX": (0.0, 255 / 256), "TANH": (-1.0, 127 / 128)},
    16: {"LOGISTIC": _SYMMETRIC, "SOFTMAX": _SYMMETRIC, "TANH": _SYMMETRIC},
}


def complete_ranges(
    graph: Graph, ranges: Mapping[str, Range], activation_bits: int, constants: Mapping[str, Range] | None = None
) -> dict[str, Range]:
    """The range of every float tensor of a graph but kernels and biases, as LiteRT's kernels need them.

    Operators that only move values give their output the input's range, and an input that nothing else reads
    and that has none the output's; so does a ReLU for its input. A concatenation and its like give their inputs the
    output's range, but for those that are read elsewhere, or bound by their own operator: they are requantized.
    Softmax, sigmoid and tanh have fixed ranges. All of this stands above `ranges`.

    Args:
      graph: of a file in float32.
      ranges: real (lowest, highest) value by tensor name.
      activation_bits: 8 or 16.
      constants: ranges of the constants that take none from the operator that reads them.

    Raises:
      ValueError: a tensor has no range, or a range is none.
    """
    names = [tensor.name for tensor in graph.tensors]
    unknown = sorted(set(ranges) - set(names))
    require(not unknown, f"there are ranges for {', '.join(unknown)}, which the file does not have")
    for name, each in (*ranges.items(), *(constants or {}).items()):
        check_range(name, each)
    known = dict(ranges)
    _spread(graph, known, FIXED[activation_bits])
    known |= {name: each for name, each in (constants or {}).items() if name not in known}
    _spread(graph, known, FIXED[activation_bits])
    operands = kernel_operands(graph)
    missing = [
        f"{tensor.name!r} ({operator.type})"
        for operator in graph.operators
        for tensor in floats(graph, operator.tensors)
        if tensor.index not in operands and tensor.name not in known
    ]
    require(
        not missing,
        f"tensors without a range: {', '.join(dict.fromkeys(missing))}. Put a quantizer behind what makes them",
    )
    return known


def check_range(name: str, limits: Range) -> None:
    """Raises a ValueError unless the limits are finite and in order.

    >>> check_range("x", (0.0, float("nan")))
    Traceback (most recent call last):
    ValueError: the range of 'x' must be two finite numbers, the lower first; received (0.0, nan)
    """
    low, high = limits
    require(
        math.isfinite(low) and math.isfinite(high) and low < high,
        f"the range of {name!r} must be two finite numbers, the lower first; received {limits!r}",
    )


def affine(limits: Range, bits: int) -> tuple[float, int]:
    """Scale and zero point of activations: symmetric with 16 bits, else over the range with 0 in it.

    >>> affine((0.0, 25.5), 8)
    (0.1, -128)
    >>> affine((-1.0, 3.2767), 16)
    (0.0001, 0)
    """
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    if bits == 16:
        return max(-low, high) / 32767, 0
    scale = (high - low) / 255
    return scale, round(-128 - low / scale)


def kernel_operands(graph: Graph) -> dict[int, Operator]:
    """The operator of each constant kernel and bias, by tensor index."""
    return {
        operator.inputs[place]: operator
        for operator in graph.operators
        for place in KERNELS.get(operator.type, ())
        if place < len(operator.inputs)
        and operator.inputs[place] >= 0
        and graph.tensors[operator.inputs[place]].data is not None
    }


def _spread(graph: Graph, known: dict[str, Range], fixed: Mapping[str, Range]) -> None:
    """Takes ranges along the operators, against and with their order, until nothing changes."""
    readers = collections.Counter(i for operator in graph.operators for i in set(operator.inputs))
    readers.update(graph.outputs)
    bound = {i for op in graph.operators if op.type in KEEPS_SCALE | MERGES | set(fixed) for i in op.outputs}
    bound |= set(graph.inputs)

    def only_reader(tensor: Tensor) -> bool:
        return readers[tensor.index] == 1

    while True:
        before = dict(known)
        for operator in reversed(graph.operators):
            inputs, outputs = floats(graph, operator.inputs), floats(graph, operator.outputs)
            given = {known[tensor.name] for tensor in outputs if tensor.name in known}
            if operator.type in fixed:
                known[outputs[0].name] = fixed[operator.type]
            elif len(given) == 1 and operator.type in _PICKING | _CUTTING | MERGES:
                for tensor in filter(only_reader, inputs):
                    if tensor.name not in known or (operator.type in MERGES and tensor.index not in bound):
                        known[tensor.name] = next(iter(given))
        for operator in graph.operators:
            inputs = floats(graph, operator.inputs)
            if operator.type in KEEPS_SCALE and inputs and inputs[0].name in known:
                known |= {tensor.name: known[inputs[0].name] for tensor in floats(graph, operator.outputs)}
        if known == before:
            return


def floats(graph: Graph, indices: Iterable[int]) -> list[Tensor]:
    """The float tensors among those with these indices, in their order."""
    return [graph.tensors[i] for i in indices if i >= 0 and graph.tensors[i].is_float]
