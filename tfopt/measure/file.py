"""What is in a .tflite file: size, operators, sparsity and unique values of its weights."""

import collections
import dataclasses
import gzip
import os
import pathlib

import numpy as np
import zstandard

from tfopt.record import Record
from tfopt.tflite.flatbuffer import FlatBuffer, Graph, Operator, Tensor, read_tflite

# Operand numbers that are weights, by operator, where they are constant. Biases are not weights.
WEIGHT_OPERANDS: dict[str, tuple[int, ...]] = {
    "CONV_2D": (1,),
    "DEPTHWISE_CONV_2D": (1,),
    "CONV_3D": (1,),
    "TRANSPOSE_CONV": (1,),
    "CONV_3D_TRANSPOSE": (1,),
    "FULLY_CONNECTED": (1,),
    "BATCH_MATMUL": (0, 1),
    "EMBEDDING_LOOKUP": (1,),
    "GATHER": (0,),
    "SVDF": (1, 2),
    "RNN": (1, 2),
    "UNIDIRECTIONAL_SEQUENCE_RNN": (1, 2),
    "LSTM": (*range(1, 9), 16),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 9), 16),
}
# These change the number format of a tensor; they do not compute with it.
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


@dataclasses.dataclass(frozen=True)
class WeightTensor(Record):
    """One constant weight tensor of a file.

    Args:
      name: as in the file; made unique by "#<index>" where two have the same.
      shape: as in the file, where a Dense kernel is (units, inputs) and a Conv2D one (filters, h, w, inputs).
      dtype: "float32", "float16", "int8", "int4", …
      sparsity: fraction of zeros, in [0, 1]; of a quantized tensor, of integers equal to the zero point.
      unique_values: how many different values are stored.
      bytes: what the values take in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sparsity: float
    unique_values: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Measurement(Record):
    """What `measure_tflite` found.

    Args:
      path: of the file.
      bytes: size of the file.
      gzip_bytes: its size after gzip at level 9, as it travels in an app or a download.
      zstd_bytes: its size after Zstandard at level 19, as app stores and filesystems of today compress.
      ops: how many operators of each type, in all graphs.
      float_ops: types of the operators that compute on floating-point tensors, each once; QUANTIZE and
        DEQUANTIZE only convert and are left out.
      flex_ops: TensorFlow ops that need the Flex delegate, each once.
      total_sparsity: fraction of zeros over all weight tensors, in [0, 1].
      tensors: the weight tensors. A weight tensor is a constant that is the weight operand of a convolution,
        a dense or matrix product, an embedding look-up or a recurrent operator, directly or through a
        DEQUANTIZE; biases, shapes and other constants are none. Constants that share their data count once.
    """

    path: str
    bytes: int
    gzip_bytes: int
    zstd_bytes: int
    ops: dict[str, int]
    float_ops: list[str]
    flex_ops: list[str]
    total_sparsity: float
    tensors: list[WeightTensor]

    @property
    def sparsity(self) -> dict[str, float]:
        """Fraction of zeros by weight tensor."""
        return {tensor.name: tensor.sparsity for tensor in self.tensors}

    @property
    def unique_values(self) -> dict[str, int]:
        """Number of different values by weight tensor."""
        return {tensor.name: tensor.unique_values for tensor in self.tensors}


def measure_tflite(path: str | os.PathLike[str]) -> Measurement:
    """Measures a .tflite file without running it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, cut short, or of another kind.
    """
    file = read_tflite(path)
    content = pathlib.Path(path).read_bytes()
    weights = weight_tensors(file)
    values = sum(weight.values.size for weight in weights)
    zeros = sum(int(weight.is_zero.sum()) for weight in weights)
    return Measurement(
        path=str(path),
        bytes=len(content),
        gzip_bytes=len(gzip.compress(content, compresslevel=9, mtime=0)),
        zstd_bytes=len(zstandard.ZstdCompressor(level=19).compress(content)),
        ops=dict(collections.Counter(operator.type for operator in file.operators)),
        float_ops=list(dict.fromkeys(operator.type for _, operator in float_operators(file))),
        flex_ops=file.flex_ops,
        total_sparsity=zeros / values if values else 0.0,
        tensors=[weight.measure() for weight in weights],
    )


def float_operators(file: FlatBuffer) -> list[tuple[Graph, Operator]]:
    """The operators that read or write floating-point tensors, conversions left out, each with its graph."""
    return [
        (graph, operator)
        for graph in file.graphs
        for operator in graph.operators
        if operator.type not in CONVERSIONS and any(graph.tensors[i].is_float for i in operator.tensors)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A weight tensor with its values."""

    name: str
    tensor: Tensor

    @property
    def values(self) -> np.ndarray:
        """What is stored, integers where the tensor is quantized."""
        assert self.tensor.data is not None
        return self.tensor.data

    @property
    def is_zero(self) -> np.ndarray:
        """Where the value means 0, bool, of the shape of the values."""
        return self.values == self.tensor.zero

    def measure(self) -> WeightTensor:
        """Its figures."""
        bits = {"int2": 2, "int4": 4, "uint4": 4, "bfloat16": 16}.get(self.tensor.dtype, 8 * self.values.dtype.itemsize)
        return WeightTensor(
            name=self.name,
            shape=self.values.shape,
            dtype=self.tensor.dtype,
            sparsity=float(self.is_zero.mean()) if self.values.size else 0.0,
            unique_values=len(np.unique(self.values)),
            bytes=-(-self.values.size * bits // 8),
        )


def weight_tensors(file: FlatBuffer) -> list[Weight]:
    """The weight tensors of a file in the order in which they are used; see `Measurement.tensors`."""
    found: dict[int, Weight] = {}
    names: set[str] = set()
    for graph in file.graphs:
        converted = {op.outputs[0]: op.inputs[0] for op in graph.operators if op.type == "DEQUANTIZE"}
        for operator in graph.operators:
            for place in WEIGHT_OPERANDS.get(operator.type, ()):
                if place >= len(operator.inputs) or operator.inputs[place] < 0:
                    continue
                index = operator.inputs[place]
                tensor = graph.tensors[converted.get(index, index)]
                if tensor.data is None or tensor.data.ndim < 2 or tensor.buffer in found:
                    continue
                name = tensor.name if tensor.name not in names else f"{tensor.name}#{tensor.index}"
                names.add(name)
                found[tensor.buffer] = Weight(name, tensor)
    return list(found.values())
