"""Arrays in HDF5 files, read row by row from the disk."""

import os
import pathlib
import threading
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tfopt.config import did_you_mean, require
from tfopt.data.dataset import Data, from_arrays
from tfopt.data.labels import as_targets


def from_hdf5(
    path: str | os.PathLike[str], x: str = "x", y: str = "y", *, groups: str | None = None, **options: Any
) -> Data:
    """Makes `Data` of the arrays in an HDF5 file, whose inputs may be larger than memory.

    Rows of the inputs are read from the disk as they are needed; only their numbers are shuffled. So write them in
    chunks of one or few rows. Text is read as strings; in y its sorted words are the classes.

    Args:
      path: of the file.
      x: name of the inputs in it, with the examples along the first axis; "group/name" in a group.
      y: name of the labels or targets; kept in memory.
      groups: name of the groups to keep together, such as subjects.
      **options: those of `from_arrays`, such as `test_fraction`, `stratify`, `seed` and `batch_size`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no HDF5, has no array of a name, or arrays of unequal lengths or of other things than
        numbers and text.

    >>> import tempfile, h5py
    >>> path = pathlib.Path(tempfile.mkdtemp(), "set.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file["x"], file["y"] = np.zeros((20, 3), "float32"), np.arange(20) % 2
    >>> data = from_hdf5(path)
    >>> data.sizes, data.input_shape
    ({'train': 16, 'validation': 2, 'test': 2}, (3,))
    """
    path = pathlib.Path(path).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    rows = _Rows(path, x)
    dtype, shape = _type(path, x, rows.array), rows.array.shape
    targets = rows.whole(y)
    require(
        len(shape) >= 1 and targets.ndim >= 1 and shape[0] == len(targets),
        f"{x} and {y} must have as many rows each, received shapes {shape} and {targets.shape}",
    )

    def read(index: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = tf.numpy_function(rows.__getitem__, [index], dtype, stateful=False)
        row.set_shape(shape[1:])
        return row, target

    if targets.dtype.kind in "OS":
        targets, options["class_names"] = as_targets(targets, options.get("class_names", ()))
    own = rows.whole(groups) if groups is not None else None
    numbered = (np.arange(len(targets)), targets)
    return from_arrays(numbered, groups=own, **{"name": path.stem, **options}, read=read)


class _Rows:
    """The rows of one array in a file, for many threads."""

    def __init__(self, path: pathlib.Path, name: str) -> None:
        self._path, self._name, self._lock = path, name, threading.Lock()
        self._process, self._open, self._array = -1, cast(Any, None), cast(Any, None)

    @property
    def array(self) -> Any:
        """The array, in a file that this process has opened: HDF5 does not survive a fork."""
        if self._process != os.getpid():
            self._process, self._open = os.getpid(), _open(self._path)
            self._array = _find(self._path, self._open, self._name)
        return self._array

    def __getitem__(self, index: int) -> Any:
        with self._lock:
            return _native(self.array[index])

    def whole(self, name: str) -> np.ndarray:
        """Another array of the file, in memory."""
        found = _find(self._path, self._open, name)
        _type(self._path, name, found)
        return _native(found[()])


def _native(values: Any) -> Any:
    """Numbers in the byte order of this machine, the only one that TensorFlow knows."""
    values = np.asarray(values)
    return values if values.dtype.kind in "SO" else values.astype(values.dtype.newbyteorder("="), copy=False)


def _open(path: pathlib.Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as HDF5: {error}") from error


def _find(path: pathlib.Path, file: Any, name: str) -> Any:
    import h5py

    if isinstance(found := file.get(name), h5py.Dataset):
        return found
    known: list[str] = []
    file.visititems(lambda each, item: known.append(each) if isinstance(item, h5py.Dataset) else None)
    raise ValueError(f"{path} has no array {name!r}: {did_you_mean(name, known)}")


def _type(path: pathlib.Path, name: str, array: Any) -> tf.DType:
    import h5py

    if h5py.check_string_dtype(array.dtype):
        return tf.string
    require(
        array.dtype.kind in "biuf",
        f"{name} in {path} holds {array.dtype}: arrays of numbers and of text are read",
    )
    return tf.as_dtype(array.dtype)
