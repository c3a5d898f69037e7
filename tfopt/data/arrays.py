"""NumPy arrays of what Python holds."""

from typing import Any

import numpy as np


def as_array(values: Any) -> np.ndarray:
    """As `np.asarray`, but text becomes objects: NumPy's own types of text drop NUL bytes at its end.

    >>> as_array([b"a", b"b\\0"])
    array([b'a', b'b\\x00'], dtype=object)
    """
    if isinstance(values, str | bytes):
        return np.array(values, object)
    found = np.asarray(values)
    return np.array(values, object) if found.dtype.kind in "SU" and isinstance(values, list | tuple) else found
