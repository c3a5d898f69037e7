"""Any measured value as what JSON can hold."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any, where: str = "value") -> Any:
    """Turns a value into dicts, lists, strings, numbers, booleans and None.

    NaN and infinities become None: JSON has no such numbers. NumPy scalars, arrays, tensors, paths and
    dataclasses are converted.

    Args:
      value: anything measured.
      where: what the value is, for the error.

    Raises:
      TypeError: for a value that has no JSON form, and for a key that is not a string.

    >>> import numpy as np
    >>> plain({"loss": np.float32("nan"), "sizes": (1, np.int64(2))})
    {'loss': None, 'sizes': [1, 2]}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # Surrogates, as in file names that are not UTF-8, cannot be written to a UTF-8 file.
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return plain(os.fspath(value), where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({each.name: getattr(value, each.name) for each in dataclasses.fields(value)}, where)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{where} has the key {key!r} of type {type(key).__name__}; a report is written as JSON "
                    f"and needs strings as keys: write {str(key)!r}"
                )
        return {plain(key): plain(each, f"{where}[{key!r}]") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, f"{where}[{index}]") for index, each in enumerate(value)]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype != object:
            return plain(array.tolist(), where)
    raise TypeError(
        f"{where} is {value!r} of type {type(value).__name__}, which has no JSON form; a report takes "
        "numbers, strings, booleans, None, lists, dicts, paths, dataclasses and arrays: convert it first"
    )
