"""What a model takes and gives; travels as JSON between the processes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.config import require

# NumPy has no fixed size for these: each value is bytes.
STRING = "string"
SIGNATURE = "serving_default"
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
# What requests and answers can hold, by the names of the V2 protocol.
DATATYPES = {
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{each.upper(): each for each in _INTEGERS},
    "BOOL": "bool",
    "BYTES": STRING,
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Args:
      name: as clients call it.
      shape: with the axis of the examples, where there is one; -1 for an open axis.
      dtype: what clients send or get: "float32" where the file is quantized; "string" for bytes.
      stored: what the file holds, such as "int8".
      scale: real = scale * (stored - zero_point); None where it is not quantized, or has several scales.
      zero_point: see `scale`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str
    scale: float | None = None
    zero_point: int | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether clients send or get other values than the file holds."""
        return self.dtype != self.stored


@dataclasses.dataclass(frozen=True)
class Description:
    """A model as its clients see it.

    Args:
      kind: "litert", "keras" or "saved_model".
      inputs: in the model's order.
      outputs: likewise.
      batch: the size of the axis of examples: -1 where it is open, 0 where there is no such axis.
      metadata: what travels in the file: "class_names" and "preprocessing", where it has them.
      signature: of a SavedModel, as clients may call it.
    """

    kind: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    batch: int
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    signature: str = SIGNATURE

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each value on the last axis of the first output; empty where the file names none."""
        return tuple(self.metadata.get("class_names", ()))

    def sizes(self, info: TensorInfo) -> list[int]:
        """The shape of an input or output as clients may fill it: with any number of examples."""
        return [-1, *info.shape[1:]] if self.batch and info.shape else list(info.shape)

    def check_types(self) -> None:
        """Raises a ValueError where requests or answers cannot hold the model's inputs or outputs."""
        for info in (*self.inputs, *self.outputs):
            require(
                info.dtype in DATATYPES.values(),
                f"{info.name!r} is of type {info.dtype}, which requests and answers cannot hold: expected one of "
                f"{', '.join(DATATYPES.values())}",
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Description":
        """What `to_dict` gave.

        >>> info = TensorInfo("x", (-1, 2), "float32", "int8", 0.5, 3)
        >>> one = Description("litert", (info,), (info,), -1)
        >>> Description.from_dict(one.to_dict()) == one
        True
        """
        tensors = {
            key: tuple(TensorInfo(**{**each, "shape": tuple(each["shape"])}) for each in values[key])
            for key in ("inputs", "outputs")
        }
        return cls(**{**values, **tensors})

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raises a ValueError where names, shapes, types or values of a request do not fit."""
        require(
            set(inputs) == {info.name for info in self.inputs},
            f"expected the inputs {', '.join(info.name for info in self.inputs)}, received "
            f"{', '.join(inputs) or 'none'}",
        )
        for info in self.inputs:
            self._check(info, inputs[info.name])
        if self.batch:
            sizes = {name: len(values) for name, values in inputs.items()}
            require(len(set(sizes.values())) == 1, f"the inputs have different numbers of examples: {sizes}")

    def _check(self, info: TensorInfo, values: np.ndarray) -> None:
        expected = (-1 if self.batch else info.shape[0], *info.shape[1:]) if info.shape else ()
        fits = values.ndim == len(expected) and all(
            wanted in (-1, size) for wanted, size in zip(expected, values.shape, strict=True)
        )
        require(fits, f"the input {info.name!r} has shape {list(values.shape)}, expected {list(expected)}")
        require(0 not in values.shape, f"the input {info.name!r} is empty: its shape is {list(values.shape)}")
        dtype = STRING if values.dtype.kind in "OS" else values.dtype.name
        allowed = dict.fromkeys((info.dtype, info.stored))
        require(dtype in allowed, f"the input {info.name!r} has type {dtype}, expected {' or '.join(allowed)}")
        if values.dtype.kind == "f":
            require(
                bool(np.isfinite(values).all()),
                f"the input {info.name!r} holds NaN or infinity; only finite numbers are taken",
            )
