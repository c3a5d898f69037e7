"""Reads a .tflite file without running it."""

import dataclasses
import functools
import os
import pathlib
import struct
from collections.abc import Iterable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")

_NUMPY = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "bool"} | {
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "complex64",
    "complex128",
}
# Several values share a byte, the first one in its lowest bits.
_PACKED_BITS = {"int2": 2, "int4": 4, "uint4": 4}
_OPTIONAL = -1


def _names(enumeration: type) -> dict[int, str]:
    return {code: name for name, code in vars(enumeration).items() if not name.startswith("_")}


_DTYPES = {code: name.lower() for code, name in _names(schema.TensorType).items()}
_OPERATORS = _names(schema.BuiltinOperator)


@dataclasses.dataclass(frozen=True, eq=False)
class Quantization:
    """Affine quantization: real = scale * (integer - zero_point), as in Jacob et al. 2018, equation 1.

    Args:
      scales: float32, shape (1,) for the whole tensor or (channels,).
      zero_points: int64, of the same shape.
      axis: the axis of the channels; of no meaning with one scale.
    """

    scales: np.ndarray
    zero_points: np.ndarray
    axis: int = 0

    def along(self, values: np.ndarray, rank: int) -> np.ndarray:
        """Shapes scales or zero points so that they broadcast against a tensor of that rank."""
        return values if values.size == 1 else values.reshape([-1 if i == self.axis else 1 for i in range(rank)])


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a graph.

    Args:
      index: its place in the graph's tensors.
      name: as the converter wrote it, such as "model/conv/Relu;model/conv/BiasAdd".
      shape: static shape, with -1 for a dynamic axis.
      dtype: "float32", "int8", "int4", …
      quantization: None where the values are what they are.
      data: the constant's values as stored (packed types as int8 or uint8, bfloat16 as float32), None for a
        tensor that is computed.
      buffer: number of the buffer that holds the data: tensors with equal data may share one.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None
    data: np.ndarray | None
    buffer: int

    @property
    def is_float(self) -> bool:
        """Whether the values are stored and computed as floating-point numbers."""
        return self.dtype in FLOAT_DTYPES

    @property
    def zero(self) -> np.ndarray:
        """The stored value that means 0: the zero point, shaped to broadcast against the data."""
        if self.quantization is None:
            return np.zeros(1)
        return self.quantization.along(self.quantization.zero_points, len(self.shape))

    def dequantize(self, values: np.ndarray | None = None) -> np.ndarray:
        """The real values of `values`, or of the constant itself, as float32 where it is quantized.

        >>> scale = Quantization(np.array([0.5], "float32"), np.array([3]))
        >>> Tensor(0, "x", (2,), "int8", scale, np.array([3, 5], "int8"), 1).dequantize().tolist()
        [0.0, 1.0]
        """
        values = self.data if values is None else values
        if values is None:
            raise ValueError(f"the tensor {self.name!r} is computed when the file runs: pass its values")
        if self.quantization is None:
            return values
        scale = self.quantization.along(self.quantization.scales, values.ndim)
        zero = self.quantization.along(self.quantization.zero_points, values.ndim)
        return ((values.astype(np.float64) - zero) * scale).astype(np.float32)

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Real values as this tensor stores them: rounded and clipped where it is quantized."""
        if self.quantization is None:
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        scale = self.quantization.along(self.quantization.scales, values.ndim)
        # float32 holds all integers of 16 bits, and whole test sets fit in memory.
        zero = self.quantization.along(self.quantization.zero_points, values.ndim).astype(np.float32)
        return np.clip(np.rint(values / scale) + zero, limits.min, limits.max).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator: its type ("CONV_2D", or a custom name such as "FlexErf") and its tensors.

    `inputs` and `outputs` are tensor indices; -1 stands for an optional input that is left out. `graphs` are those that
    it runs, as loops and conditions do.
    """

    type: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_custom: bool = False
    graphs: tuple[int, ...] = ()

    @property
    def tensors(self) -> tuple[int, ...]:
        """Indices of all tensors that it reads or writes."""
        return tuple(index for index in self.inputs + self.outputs if index != _OPTIONAL)


@dataclasses.dataclass(frozen=True)
class Graph:
    """The main graph of a file, or the body of a control-flow operator; operators are in running order."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """Names of a graph's inputs and outputs: name -> tensor index, in the order of the graph."""

    inputs: dict[str, int]
    outputs: dict[str, int]
    graph: int = 0


@dataclasses.dataclass(frozen=True)
class FlatBuffer:
    """What a .tflite file holds. `graphs[0]` is the main graph, `metadata` what travels along, by name."""

    path: str
    graphs: tuple[Graph, ...]
    signatures: dict[str, Signature]
    metadata: dict[str, bytes] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def signature(self) -> Signature:
        """Input and output names of the main graph; the tensors' own names where no signature is stored."""
        for signature in self.signatures.values():
            if signature.graph == 0:
                return signature
        main = self.graphs[0]
        return Signature(
            {main.tensors[i].name: i for i in main.inputs}, {main.tensors[i].name: i for i in main.outputs}
        )

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The main graph's inputs by name."""
        return {name: self.graphs[0].tensors[i] for name, i in self.signature.inputs.items()}

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The main graph's outputs by name."""
        return {name: self.graphs[0].tensors[i] for name, i in self.signature.outputs.items()}

    @property
    def operators(self) -> list[Operator]:
        """The operators of all graphs, the main one first."""
        return [operator for graph in self.graphs for operator in graph.operators]

    @property
    def flex_ops(self) -> list[str]:
        """TensorFlow ops that need the Flex delegate, each once, without the prefix "Flex"."""
        return _once(op.type.removeprefix("Flex") for op in self.operators if _is_flex(op))

    @property
    def custom_ops(self) -> list[str]:
        """Other custom ops, each once."""
        return _once(op.type for op in self.operators if op.is_custom and not _is_flex(op))


def _is_flex(operator: Operator) -> bool:
    return operator.is_custom and operator.type.startswith("Flex")


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def read_tflite(path: str | os.PathLike[str]) -> FlatBuffer:
    """Reads the graphs, constants and signatures of a .tflite file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, cut short, or of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: export_tflite writes one")
    return parse_tflite(path.read_bytes(), str(path))


def parse_tflite(content: bytes, path: str = "model.tflite") -> FlatBuffer:
    """As `read_tflite`, from bytes in memory; `path` is for messages."""
    damaged = f"{pathlib.Path(path).name} is damaged or cut short"
    if len(content) < 8:
        raise ValueError(f"{damaged}: it holds {len(content)} bytes ({path}); export it again")
    if content[4:8] != IDENTIFIER:
        raise ValueError(
            f"{damaged}, or no .tflite file at all: bytes 4 to 8 are {content[4:8]!r}, expected "
            f"{IDENTIFIER!r} ({path}); export it again"
        )
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        graphs = tuple(_graph(model, graph, content) for graph in model.subgraphs)
        signatures = {_text(each.signatureKey): _signature(each, graphs) for each in _list(model.signatureDefs)}
        metadata = {_text(each.name): _content(model.buffers[each.buffer]) for each in _list(model.metadata)}
        if not graphs:
            raise ValueError("it holds no graph")
    # What the generated readers raise when an offset points outside of the file.
    except (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{damaged}: {error} ({path}, {len(content):,} bytes); export it again") from error
    return FlatBuffer(path, graphs, signatures, metadata)


def _graph(model: schema.ModelT, graph: schema.SubGraphT, content: bytes) -> Graph:
    tensors = tuple(_tensor(model, i, each, content) for i, each in enumerate(_list(graph.tensors)))
    operators = tuple(_operator(model, each) for each in _list(graph.operators))
    inputs, outputs = _indices(graph.inputs), _indices(graph.outputs)
    used = {i for operator in operators for i in operator.tensors} | set(inputs) | set(outputs)
    outside = sorted(i for i in used if not 0 <= i < len(tensors))
    if outside:
        raise ValueError(f"tensors {outside} are used, but there are {len(tensors)}")
    return Graph(_text(graph.name), tensors, operators, inputs, outputs)


def _tensor(model: schema.ModelT, index: int, tensor: schema.TensorT, content: bytes) -> Tensor:
    name = _text(tensor.name)
    static, signature = _indices(tensor.shape), _indices(tensor.shapeSignature)
    dtype = _DTYPES[tensor.type]
    data = _raw(model.buffers[tensor.buffer], content)
    quantization = None
    stored = tensor.quantization
    if stored is not None and stored.scale is not None and len(stored.scale):
        scales = np.array(stored.scale)
        zeros = np.zeros(len(scales), np.int64) if stored.zeroPoint is None else np.array(stored.zeroPoint)
        quantization = Quantization(scales, zeros, stored.quantizedDimension)
    if data is not None and tensor.sparsity is not None:
        raise ValueError(f"the tensor {name!r} is stored in the sparse format, which tfopt does not read")
    values = None if data is None else _values(data, dtype, static, name)
    return Tensor(index, name, signature or static, dtype, quantization, values, tensor.buffer)


def _raw(buffer: schema.BufferT, content: bytes) -> np.ndarray | None:
    if buffer.size and buffer.offset > 1:  # files beyond 2 GB keep their data behind the flatbuffer
        return np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    return None if buffer.data is None or len(buffer.data) == 0 else buffer.data


def _content(buffer: schema.BufferT) -> bytes:
    return b"" if buffer.data is None else bytes(bytearray(buffer.data))


def _values(data: np.ndarray, dtype: str, shape: tuple[int, ...], name: str) -> np.ndarray | None:
    count = int(np.prod(shape, dtype=np.int64))
    if dtype in _PACKED_BITS:
        bits = _PACKED_BITS[dtype]
        _expect(name, data.nbytes, -(-count * bits // 8))
        return _unpack(data, bits, signed=dtype.startswith("int"))[:count].reshape(shape)
    if dtype == "bfloat16":
        _expect(name, data.nbytes, 2 * count)
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype in _NUMPY:
        _expect(name, data.nbytes, np.dtype(dtype).itemsize * count)
        return data.view(dtype).reshape(shape)
    return None  # strings and resources have no numbers


def _expect(name: str, received: int, expected: int) -> None:
    if received != expected:
        raise ValueError(f"the constant {name!r} has {received:,} bytes, its shape needs {expected:,}")


def _unpack(data: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (data[:, None] >> shifts & (2**bits - 1)).reshape(-1)
    if not signed:
        return values
    return np.where(values >= 2 ** (bits - 1), values.astype(np.int8) - 2**bits, values).astype(np.int8)


def _operator(model: schema.ModelT, operator: schema.OperatorT) -> Operator:
    code = model.operatorCodes[operator.opcodeIndex]
    # Files from before 2020 have the code in the older, 8-bit field only.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    is_custom = number == schema.BuiltinOperator.CUSTOM
    kind = _text(code.customCode) if is_custom else _OPERATORS.get(number, f"BUILTIN_{number}")
    options = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
    graphs = tuple(number for name, number in options.items() if name.endswith("SubgraphIndex"))
    return Operator(kind, _indices(operator.inputs), _indices(operator.outputs), is_custom, graphs)


def _signature(signature: schema.SignatureDefT, graphs: tuple[Graph, ...]) -> Signature:
    graph = graphs[signature.subgraphIndex]

    def ordered(maps: list, order: tuple[int, ...]) -> dict[str, int]:
        named = {_text(each.name): each.tensorIndex for each in _list(maps)}
        return dict(sorted(named.items(), key=lambda item: order.index(item[1])))

    return Signature(
        ordered(signature.inputs, graph.inputs),
        ordered(signature.outputs, graph.outputs),
        signature.subgraphIndex,
    )


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8")


def _list(values: list | None) -> list:
    return [] if values is None else values


def _indices(values: np.ndarray | None) -> tuple[int, ...]:
    return () if values is None else tuple(int(each) for each in values)
