"""Arrays from the values of JSON, and back."""

import base64
import itertools
from typing import Any

import numpy as np
import pydantic_core

from tfopt.config import require
from tfopt.serve.description import STRING, TensorInfo

# What may stand for NumPy's kinds of types: a whole number is a float too, and nothing else is another.
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {"f": (int, float), "i": (int,), "u": (int,), "b": (bool,)}
_MOST_AXES = 32


def parse(body: bytes | memoryview) -> Any:
    """The values of a JSON text. NaN and Infinity are no JSON, and nesting ends at 200.

    Raises:
      ValueError: it is no JSON; says where.
    """
    try:
        return pydantic_core.from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"the body is no JSON: {error}") from error


def dump(values: Any) -> bytes:
    """JSON of values; numbers that are not finite are written as TensorFlow Serving does, NaN and Infinity."""
    return pydantic_core.to_json(values, inf_nan_mode="constants")


def to_array(values: Any, info: TensorInfo, dtype: str | None = None) -> np.ndarray:
    """An array of nested lists.

    Args:
      values: numbers, or texts and {"b64": …} for strings.
      info: the input that they are for; it names the type and the number of axes.
      dtype: another type than `info` names.

    Raises:
      ValueError: they are no array, or of another kind.

    >>> to_array([[1, 2.5]], TensorInfo("x", (-1, 2), "float32", "float32"))
    array([[1. , 2.5]], dtype=float32)
    """
    dtype = info.dtype if dtype is None else dtype
    flat, shape = _flatten(values, info)
    if dtype == STRING:
        strings = np.empty(len(flat), object)
        strings[:] = [_bytes_of(each, info) for each in flat]
        return strings.reshape(shape)
    # Looked at before NumPy does, which makes numbers of texts, and room for the longest text in each place.
    kinds, allowed = set(map(type, flat)), _PYTHON_TYPES.get(np.dtype(dtype).kind, ())
    require(
        kinds.issubset(allowed),
        f"the input {info.name!r} holds {' and '.join(sorted(map(_name_of, kinds)))}, expected "
        f"{' or '.join(map(_name_of, allowed)) or 'binary data'} for {dtype}",
    )
    try:
        # What is too large for a float becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            return np.array(flat, dtype).reshape(shape)
    except OverflowError as error:
        raise ValueError(f"the input {info.name!r} holds a number that is too large for {dtype}") from error


def _flatten(values: Any, info: TensorInfo) -> tuple[list[Any], tuple[int, ...]]:
    """The values of nested lists one after the other, and the shape of the lists."""
    flat, shape = [values], []
    while set(map(type, flat)) == {list}:
        lengths = set(map(len, flat))
        require(len(lengths) == 1, f"the input {info.name!r} is no array: its lists have different lengths")
        shape.append(lengths.pop())
        require(len(shape) <= _MOST_AXES, f"the input {info.name!r} has more than {_MOST_AXES} axes")
        flat = list(itertools.chain.from_iterable(flat))
    return flat, tuple(shape)


def _name_of(kind: type) -> str:
    return {list: "lists", dict: "objects", str: "texts", bool: "true or false", type(None): "null"}.get(
        kind, "whole numbers" if kind is int else "numbers"
    )


def _bytes_of(value: Any, info: TensorInfo) -> bytes:
    if isinstance(value, str):
        return value.encode()
    require(
        isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str),
        f'the input {info.name!r} takes texts or {{"b64": …}}, received {_name_of(type(value))}',
    )
    try:
        return base64.b64decode(value["b64"], validate=True)
    except ValueError as error:
        raise ValueError(f"the input {info.name!r} holds a b64 that is no base64: {error}") from error


def to_values(values: np.ndarray, name: str) -> Any:
    """Nested lists for JSON; strings as text, or {"b64": …} where the name ends with "_bytes" or they are no text."""
    if values.dtype.kind in "OSU":
        return _texts(values.tolist(), name.endswith("_bytes"))
    return values.tolist()


def _texts(value: Any, encode: bool) -> Any:
    if isinstance(value, list):
        return [_texts(each, encode) for each in value]
    if isinstance(value, str):
        return value
    try:
        if not encode:
            return value.decode()
    except UnicodeDecodeError:
        pass
    return {"b64": base64.b64encode(value).decode()}
