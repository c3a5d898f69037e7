"""Frames between the server and its workers: JSON and the raw bytes of arrays, never pickles.

A frame is the lengths of its head (4 bytes) and of its content (8 bytes), the head as JSON, and as content the bytes of
its arrays, one after the other. The head's "arrays" has a list for each request: name, type, shape and bytes of each.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.config import require
from tfopt.serve.description import STRING

Arrays = Mapping[str, np.ndarray]
PREFIX = struct.Struct("<IQ")
_LENGTH = struct.Struct("<I")


def pack(head: Mapping[str, Any], requests: Sequence[Arrays] = ()) -> list[bytes | memoryview]:
    """A frame, in pieces to be written one after the other.

    >>> prefix, head, *content = pack({"raw": False}, [{"x": np.ones((1, 2), "float32")}])
    >>> PREFIX.unpack(prefix) == (len(head), 8)
    True
    >>> unpack(head, b"".join(content))[1]
    [{'x': array([[1., 1.]], dtype=float32)}]
    """
    places, pieces = [], []
    for arrays in requests:
        described = []
        for name, values in arrays.items():
            dtype, content = to_bytes(values)
            described.append([name, dtype, list(values.shape), len(content)])
            pieces.append(content)
        places.append(described)
    encoded = json.dumps({**head, "arrays": places}).encode()
    return [PREFIX.pack(len(encoded), sum(map(len, pieces))), encoded, *pieces]


def unpack(head: bytes, content: bytes) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """The head of a frame, and its arrays by name for each request."""
    found = json.loads(head)
    start, requests = 0, []
    for described in found["arrays"]:
        arrays = {}
        for name, dtype, shape, size in described:
            arrays[name] = from_bytes(memoryview(content)[start : start + size], dtype, shape)
            start += size
        requests.append(arrays)
    return found, requests


def to_bytes(values: np.ndarray) -> tuple[str, bytes | memoryview]:
    """Type and raw bytes of an array, little-endian, row by row; of strings each one behind its length in 4 bytes."""
    if values.dtype.kind in "OSU":
        flat = [each.encode() if isinstance(each, str) else bytes(each) for each in values.ravel()]
        return STRING, b"".join(piece for each in flat for piece in (_LENGTH.pack(len(each)), each))
    plain = np.ascontiguousarray(values)
    return values.dtype.name, plain.data.cast("B") if plain.size else b""


def from_bytes(content: bytes | memoryview, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The array of such bytes, read-only where it is of numbers.

    Raises:
      ValueError: there are more or fewer bytes than the shape needs.

    >>> from_bytes(b"\\x01\\x00\\x00\\x00a", "string", [1]).tolist()
    [b'a']
    """
    # Of Python's integers, since a shape may name more elements than an int64 can count.
    count = math.prod(shape)
    if dtype == STRING:
        return _strings(content, count).reshape(shape)
    size = np.dtype(dtype).itemsize
    require(
        len(content) == count * size,
        f"{len(content):,} bytes for the shape {list(shape)} of {dtype}, expected {count * size:,}",
    )
    return np.frombuffer(content, dtype).reshape(shape)


def _strings(content: bytes | memoryview, count: int) -> np.ndarray:
    require(count * _LENGTH.size <= len(content), f"{len(content):,} bytes are too few for {count:,} strings")
    found = np.empty(count, object)
    start = 0
    for number in range(count):
        require(start + _LENGTH.size <= len(content), f"the string {number} has no length")
        (size,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size
        require(start + size <= len(content), f"the string {number} is said to have {size:,} bytes, and has fewer")
        found[number] = bytes(content[start : start + size])
        start += size
    require(start == len(content), f"{len(content) - start:,} bytes are left behind the last of {count:,} strings")
    return found
