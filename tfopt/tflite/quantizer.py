"""The second way to integer files: ai-edge-quantizer, with ranges and scales that were trained.

It writes mixes that TensorFlow's converter does not: int16 activations with trained ranges, over 8- or 4-bit weights.
Needs `pip install 'tfopt[int16]'`.
"""

import collections
import os
import pathlib
import tempfile
from collections.abc import Mapping

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tfopt.config import require
from tfopt.measure.file import float_operators
from tfopt.tflite.edge_quantizer import import_quantizer, write_quantized
from tfopt.tflite.flatbuffer import FlatBuffer, Graph, parse_tflite, read_tflite
from tfopt.tflite.grids import Grid, channel_axis, channel_scales, kernels_of
from tfopt.tflite.markers import strip_markers
from tfopt.tflite.quiet import quiet
from tfopt.tflite.ranges import Range, affine, complete_ranges, kernel_operands


def quantize_file(
    path: str | os.PathLike[str],
    ranges: Mapping[str, Range],
    grids: Mapping[str, Grid] | None = None,
    weight_bits: int = 8,
    activation_bits: int = 16,
    float_io: bool = False,
) -> bytes:
    """Quantizes a float32 .tflite file by given ranges and scales; nothing is measured.

    Activations of 16 bits are symmetric, scale = max(|low|, |high|) / 32767; those of 8 bits asymmetric over a
    range with 0 in it. Kernels have a scale for each output channel. 4-bit integers are packed where LiteRT
    computes with them (CONV_2D, FULLY_CONNECTED), and held in int8 elsewhere. Other constants are stored with the
    bits of activations. Biases are int64 over 16-bit activations, int32 over 8-bit ones.

    Args:
      path: of the float file.
      ranges: real (lowest, highest) value by tensor name, as `strip_markers` gives them; completed by
        `complete_ranges`.
      grids: trained grids by name of the weight tensor, as `strip_markers` gives them.
      weight_bits: 8 or 4, for kernels without a grid, whose scale is that of their largest weight.
      activation_bits: 16 or 8, of inputs and outputs too.
      float_io: float32 inputs and outputs.

    Returns:
      The content of the file, which LiteRT was seen to run.

    Raises:
      ModuleNotFoundError: ai-edge-quantizer is not installed.
      FileNotFoundError: there is no such file.
      ValueError: an argument is wrong, a tensor has no range, weights are not on their grid, an operator cannot be
        quantized, or a bias is too large for its scale.
      RuntimeError: LiteRT cannot run the file.

    >>> import keras, tempfile, tfopt.tflite.export as export
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "m.tflite")
    ...     _ = export.export_tflite(model, path)
    ...     names = [each.name for each in read_tflite(path).graphs[0].tensors if each.data is None]
    ...     content = quantize_file(path, dict.fromkeys(names, (-2.0, 2.0)))
    >>> [tensor.dtype for tensor in parse_tflite(content).graphs[0].tensors]
    ['int16', 'int8', 'int16']

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 2; the 16-bit scheme is in LiteRT's quantization specification.
    """
    require(activation_bits in (8, 16), f"activation_bits must be 16 or 8, received {activation_bits!r}")
    require(weight_bits in (4, 8), f"weight_bits must be 8 or 4, received {weight_bits!r}")
    quantizer = import_quantizer()
    file = read_tflite(path)
    _check_float(file)
    graph = file.graphs[0]
    unknown = sorted(set(grids or ()) - {kernel.name for kernel, _, _ in kernels_of(graph)})
    require(not unknown, f"there are grids for {', '.join(unknown)}, which are no kernels of {path}")
    ranges = complete_ranges(graph, ranges, activation_bits, _constant_ranges(graph))
    grids = _all_grids(graph, ranges, grids or {}, weight_bits, activation_bits)
    with quiet():
        content = write_quantized(quantizer, file, ranges, grids, activation_bits, float_io)
    _check(file, parse_tflite(content, str(path)), ranges, grids, activation_bits, float_io)
    _check_runs(content, str(path))
    return content


def quantize_marked(content: bytes, activation_bits: int = 16, float_io: bool = False) -> bytes:
    """Quantizes a file that brings its trained ranges and grids along as markers, see `strip_markers`.

    Args:
      content: of a .tflite file that was converted without optimizations.
      activation_bits: as for `quantize_file`.
      float_io: likewise.

    Raises:
      As `strip_markers` and `quantize_file`.
    """
    stripped, ranges, grids = strip_markers(content, activation_bits)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "float.tflite"
        path.write_bytes(stripped)
        names = {kernel.name for kernel, _, _ in kernels_of(read_tflite(path).graphs[0])}
        # Other constants are stored with the bits of activations.
        kernels = {name: grid for name, grid in grids.items() if name in names}
        return quantize_file(path, ranges, kernels, activation_bits=activation_bits, float_io=float_io)


def _check_float(file: FlatBuffer) -> None:
    require(
        len(file.graphs) == 1,
        f"{file.path} has {len(file.graphs)} graphs: loops, branches and composite operators cannot be quantized "
        "here. Build recurrent layers with unroll=True",
    )
    tensors = file.graphs[0].tensors
    others = [t for t in tensors if t.quantization is not None or (t.is_float and t.dtype != "float32")]
    require(
        not others,
        f"{file.path} is no file in float32: {', '.join(f'{each.name} is {each.dtype}' for each in others[:3])}. "
        'Export the model with quantization="none"',
    )
    names = collections.Counter(tensor.name for tensor in tensors)
    twice = [name for name, count in names.items() if count > 1]
    require(not twice, f"{file.path} has several tensors named {', '.join(twice)}: ranges go by name")


def _constant_ranges(graph: Graph) -> dict[str, Range]:
    operands = kernel_operands(graph)
    return {
        tensor.name: (min(float(tensor.data.min()), 0.0), max(float(tensor.data.max()), 1e-9))
        for tensor in graph.tensors
        if tensor.is_float and tensor.data is not None and tensor.data.size and tensor.index not in operands
    }


def _all_grids(
    graph: Graph, ranges: Mapping[str, Range], grids: Mapping[str, Grid], weight_bits: int, activation_bits: int
) -> dict[str, Grid]:
    """The grids of all kernels by tensor name, one scale for each output channel."""
    found: dict[str, Grid] = {}
    for kernel, bias, source in kernels_of(graph):
        if kernel.name in found:  # what several operators read has one scale, by the first one's bias
            continue
        step = affine(ranges[source.name], activation_bits)[0]
        scales = channel_scales(kernel, channel_axis(graph, kernel), grids.get(kernel.name), weight_bits, bias, step)
        found[kernel.name] = Grid(grids[kernel.name].bits if kernel.name in grids else weight_bits, scales)
    return found


def _check(
    source: FlatBuffer,
    file: FlatBuffer,
    ranges: Mapping[str, Range],
    grids: Mapping[str, Grid],
    activation_bits: int,
    float_io: bool,
) -> None:
    """Checks in the file that everything is an integer on the scale that was asked for."""
    floats = [f"{op.type} ({graph.tensors[op.outputs[0]].name})" for graph, op in float_operators(file)]
    require(
        not floats,
        f"int{activation_bits} activations are not to be had for {'; '.join(floats)}: ai-edge-quantizer or LiteRT has "
        "no integer form of them. Replace the layers that make them",
    )
    written = {tensor.name: tensor for tensor in file.graphs[0].tensors}
    edges = {*source.graphs[0].inputs, *source.graphs[0].outputs} if float_io else set()
    for tensor in source.graphs[0].tensors:
        result = written[tensor.name].quantization
        if tensor.name in grids:
            expected = grids[tensor.name].integers(tensor, channel_axis(source.graphs[0], tensor))
            received = written[tensor.name].data
            require(
                received is not None and np.array_equal(received, expected),
                f"the quantizer changed the integers of the kernel {tensor.name!r}",
            )
        elif tensor.name in ranges and tensor.data is None and tensor.index not in edges:
            scale, zero = affine(ranges[tensor.name], activation_bits)
            require(
                written[tensor.name].dtype == f"int{activation_bits}"
                and result is not None
                and np.allclose(result.scales, scale, rtol=1e-6, atol=0)
                and result.zero_points.tolist() == [zero],
                f"the quantizer gave {tensor.name!r} {result}, expected int{activation_bits} with a scale of {scale} "
                f"and {zero} as zero point",
            )


def _check_runs(content: bytes, path: str) -> None:
    """Raises a RuntimeError where LiteRT cannot run a file; some kernels refuse a type only when they run."""
    try:
        with quiet():
            interpreter = Interpreter(model_content=content)
            interpreter.allocate_tensors()
            for each in interpreter.get_input_details():
                interpreter.set_tensor(each["index"], np.zeros(each["shape"], each["dtype"]))
            interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(f"LiteRT cannot run what was made of {path}: {str(error).strip(' .')}") from error
