"""Arrays in files: `.npy`, read row by row from the disk, and `.npz`."""

import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.dataset import Data, from_arrays
from tfopt.data.labels import as_text

Path = str | os.PathLike[str]


def from_npy(x: Path, y: Any, **options: Any) -> Data:
    """Makes `Data` of an array in a `.npy` file that may be larger than memory.

    Rows are read from the disk as they are needed; only their numbers are shuffled.

    Args:
      x: path of the inputs, the examples along the first axis.
      y: path of the labels or targets, or an array; kept in memory.
      **options: those of `from_arrays`, such as `test_fraction`, `stratify`, `groups` and `batch_size`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no array of numbers, or x and y of unequal lengths.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.save(folder / "x.npy", np.arange(60, dtype="float32").reshape(20, 3))
    >>> data = from_npy(folder / "x.npy", np.arange(20) % 2, batch_size=8)
    >>> data.sizes, data.input_shape
    ({'train': 16, 'validation': 2, 'test': 2}, (3,))
    """
    rows = open_arrays(x, mapped=True)
    targets = open_arrays(y, mapped=False) if isinstance(y, str | os.PathLike) else np.asarray(y)
    require(
        rows.ndim >= 1 and targets.ndim >= 1 and len(rows) == len(targets),
        f"x and y must have as many rows each, received shapes {rows.shape} and {targets.shape}",
    )

    try:
        dtype = tf.as_dtype(rows.dtype)
    except TypeError as error:
        raise ValueError(f"{x} holds {rows.dtype}: numbers are read") from error
    # The byte order of this machine is the only one that TensorFlow knows.
    own = rows.dtype.newbyteorder("=")

    def row_at(index: int) -> np.ndarray:
        if not rows.flags.c_contiguous:
            # A copy: what is mapped may be unmapped while TensorFlow holds it.
            return np.array(rows[index], own)
        # Not from the mapping, whose pages would count as memory of this process.
        start = rows.offset + int(index) * rows.strides[0]
        row = np.fromfile(rows.filename, rows.dtype, rows[0].size, offset=start)
        return row.astype(own, copy=False).reshape(rows.shape[1:])

    def read(index: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = tf.numpy_function(row_at, [index], dtype, stateful=False)
        row.set_shape(rows.shape[1:])
        return row, target

    numbered = (np.arange(len(rows)), targets)
    return from_arrays(numbered, None, None, **{"name": pathlib.Path(x).stem, **options}, read=read)


def from_npz(
    path: Path,
    x: str = "x",
    y: str = "y",
    *,
    groups: str | None = None,
    test: str | None = None,
    classes: str | None = None,
    offsets: str | None = None,
    length: int | None = None,
    **options: Any,
) -> Data:
    """Makes `Data` of the arrays in a `.npz` file, which are read into memory.

    Args:
      path: of the file.
      x: name of the inputs in it.
      y: name of the labels or targets.
      groups: name of the groups to keep together, such as subjects.
      test: name of an array of booleans: the examples that make the test split; None: it is drawn.
      classes: name of the names of the classes, in the order of their labels.
      offsets: name of where examples of different lengths begin in x, and of its end: example i is
        `x[offsets[i] : offsets[i + 1]]`.
      length: of all examples then: longer ones are cut at their end, shorter ones filled with zeros.
      **options: those of `from_arrays`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no `.npz`, or has no array of a name, with those that it has; or an array does not fit
        the others.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "set.npz"
    >>> np.savez(path, x=np.zeros((12, 3)), y=np.arange(12) % 2, who=np.arange(12) // 2)
    >>> from_npz(path, groups="who").sizes
    {'train': 8, 'validation': 2, 'test': 2}
    """
    found = open_arrays(path, mapped=False)
    require(isinstance(found, np.lib.npyio.NpzFile), f"{path} holds one array: use from_npy")
    require((offsets is None) == (length is None), "offsets and length go together: the one says where, the other to")
    with found as arrays:
        for name in (x, y, groups, test, classes, offsets):
            require(name is None or name in arrays.files, f"{path} has no array {name!r}, it has {', '.join(arrays)}")
        inputs, targets, own = arrays[x], arrays[y], arrays[groups] if groups else None
        if offsets is not None and length is not None:
            inputs = _of_one_length(inputs, arrays[offsets], length)
        options = {"name": pathlib.Path(path).stem, **options}
        if classes is not None:
            options.setdefault("class_names", tuple(as_text(arrays[classes])))
        if test is None:
            return from_arrays((inputs, targets), groups=own, **options)
        chosen = arrays[test]
        require(
            chosen.dtype == bool and chosen.shape == (len(inputs),) == targets.shape[:1],
            f"{test!r} must be a boolean for each of {len(inputs)} examples, received {chosen.dtype} of shape "
            f"{chosen.shape}, and {targets.shape[0]} targets",
        )
        own = own if own is None else own[~chosen]
        return from_arrays(
            (inputs[~chosen], targets[~chosen]), None, (inputs[chosen], targets[chosen]), groups=own, **options
        )


def _of_one_length(joined: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
    """Examples that lie one behind the other, cut or filled with zeros: shape (examples, length, ...)."""
    require(length >= 1, f"length must be at least 1, received {length}")
    rising = np.issubdtype(offsets.dtype, np.integer) and len(offsets) >= 2 and bool((np.diff(offsets) >= 0).all())
    require(
        rising and offsets[0] >= 0 and offsets[-1] <= len(joined),
        f"offsets must be whole numbers that rise from 0 to the {len(joined)} rows of x, received {offsets}",
    )
    made = np.zeros((len(offsets) - 1, length, *joined.shape[1:]), joined.dtype)
    for row, start, stop in zip(made, offsets[:-1], offsets[1:], strict=True):
        example = joined[start:stop][:length]
        row[: len(example)] = example
    return made


def open_arrays(path: Path, mapped: bool) -> Any:
    """The array in a `.npy` file, or the arrays in a `.npz`; raises as `from_npy` and `from_npz` do."""
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as arrays of numbers: {error}. Write it with np.save") from error
    require(not mapped or isinstance(found, np.ndarray), f"{path} holds several arrays: use from_npz, or np.save each")
    return found
