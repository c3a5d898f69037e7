"""Python generators, as `Data`."""

import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.arrays import as_array
from tfopt.data.dataset import Data, from_arrays
from tfopt.data.digest import digest
from tfopt.data.npy import from_npy
from tfopt.files import atomic_path


def from_generator(
    make: Callable[[], Iterable[tuple[Any, ...]]],
    spec: Any = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    most: int | None = None,
    **options: Any,
) -> Data:
    """Makes `Data` of what a Python generator gives.

    The generator runs twice: a first time to count and check the examples, a second time to write them into arrays of
    that size. These are in memory, or in `folder`, from where rows are read as they are needed.

    Args:
      make: returns a new iterator over the same examples `(x, y)` or `(x, y, sample_weight)` each time it is called,
        such as a generator function; x and y numbers, text, arrays, or structures of these.
      spec: the same structure of `tf.TensorSpec`s with full shapes; None: as the first example is.
      folder: where to keep what does not fit in memory, as `x.npy` and `y.npy`; then x and y are one array each.
      most: examples to take of a generator that does not end.
      **options: those of `from_arrays`, such as `test_fraction`, `stratify`, `groups`, `seed` and `batch_size`.

    Raises:
      TypeError: `make` is no function, or its examples are no tuples of numbers and text.
      ValueError: no examples, one of another shape or type, or others the second time.

    >>> def squares():
    ...     for number in range(20):
    ...         yield np.full(3, number, "float32"), number**2 % 3
    >>> data = from_generator(squares, batch_size=8)
    >>> data.sizes, data.input_shape
    ({'train': 16, 'validation': 2, 'test': 2}, (3,))
    """
    if not callable(make):
        raise TypeError(f"make must be a function that returns a new iterator, received {type(make).__name__}")
    require(most is None or most >= 0, f"most must be at least 0, received {most}")
    if spec is None:
        first = next(iter(make()), None)
        require(first is not None, "the generator gives no examples")
        spec = tf.nest.map_structure(_spec, _arrays(first))
    flat = tf.nest.flatten(spec)
    require(
        all(each.shape.is_fully_defined() for each in flat), f"spec must have full shapes, received {spec}: pad or crop"
    )
    size, counted = _run(make, spec, most, None)
    require(size > 0, "the generator gives no examples")
    shapes = [(size, *each.shape) for each in flat]
    types = [object if each.dtype == tf.string else each.dtype.as_numpy_dtype for each in flat]
    if folder is None:
        arrays = [np.empty(shape, kind) for shape, kind in zip(shapes, types, strict=True)]
        _compare((size, counted), _run(make, spec, most, arrays))
        return from_arrays(tf.nest.pack_sequence_as(spec, arrays), **{"name": "generator", **options})
    require(
        len(spec) == 2 and len(flat) == 2 and object not in types,
        f"in a folder x and y are kept as one array of numbers each, the examples are {spec}: leave folder out",
    )
    folder = pathlib.Path(folder).expanduser()
    paths = folder / "x.npy", folder / "y.npy"
    with atomic_path(paths[0]) as x, atomic_path(paths[1]) as y:
        arrays = [
            np.lib.format.open_memmap(path, "w+", kind, shape)
            for path, kind, shape in zip((x, y), types, shapes, strict=True)
        ]
        _compare((size, counted), _run(make, spec, most, arrays))
        del arrays  # written out
    return from_npy(*paths, **{"name": folder.name, **options})


def _run(
    make: Callable[[], Iterable[Any]], spec: Any, most: int | None, arrays: Sequence[np.ndarray] | None
) -> tuple[int, bytes]:
    """Runs the generator once: the number of its examples and their digest. Writes them into arrays that are given."""
    flat, size, found = tf.nest.flatten(spec), 0, hashlib.blake2b()
    for number, example in enumerate(itertools.islice(make(), most)):
        parts = _arrays(example)
        tf.nest.assert_same_structure(spec, parts)
        parts = tf.nest.flatten(parts)
        for part, each in zip(parts, flat, strict=True):
            require(
                part.shape == tuple(each.shape) and _fits(part, each.dtype),
                f"example {number} of the generator holds {_spec(part)}, expected {each} as in the first example, "
                "or in spec: bring all examples to one shape and type",
            )
            if _overflows(part, each.dtype):
                raise ValueError(
                    f"example {number} of the generator holds {np.abs(part).max()}, too large for {each.dtype.name} as "
                    "in the first example, or in spec: pass a spec with a larger type"
                )
        found.update(digest(parts))
        size += 1
        # One more than before is counted, and compared; there is no place for it.
        if arrays is not None and number < len(arrays[0]):
            for array, part in zip(arrays, parts, strict=True):
                array[number] = part.item() if part.dtype.kind in "SUO" and not part.shape else part
    return size, found.digest()


def _compare(first: tuple[int, bytes], second: tuple[int, bytes]) -> None:
    require(
        first[0] == second[0],
        f"the generator gave {first[0]:,} examples the first time and {second[0]:,} the second: make() must return "
        "a new iterator over the same examples each time",
    )
    require(
        first[1] == second[1],
        "the generator gives other examples each time it runs, so no run could be resumed: seed what is random in it",
    )


def _arrays(example: Any) -> tuple[Any, ...]:
    if not isinstance(example, tuple) or len(example) not in (2, 3):
        raise TypeError(f"examples must be (x, y) or (x, y, sample_weight), received {type(example).__name__}")
    return tuple(_as_arrays(part) for part in example)


def _as_arrays(part: Any) -> Any:
    """A structure of arrays. To tf.nest a list is a structure too, here it is an array."""
    if isinstance(part, dict):
        return {name: _as_arrays(each) for name, each in part.items()}
    if isinstance(part, tuple):
        return tuple(map(_as_arrays, part))
    found = as_array(part)
    for each in found.flat if found.dtype.kind == "O" else ():
        if not isinstance(each, str | bytes):
            raise TypeError(f"examples must hold numbers and text, received {type(each).__name__} {str(each)[:40]}")
    return found


def _spec(array: np.ndarray) -> tf.TensorSpec:
    return tf.TensorSpec(array.shape, tf.string if array.dtype.kind in "SUO" else tf.as_dtype(array.dtype))


def _fits(part: np.ndarray, dtype: tf.DType) -> bool:
    """Whether nothing but precision is lost."""
    if dtype == tf.string or part.dtype.kind in "SUO":
        return dtype == tf.string and part.dtype.kind in "SUO"
    return np.can_cast(part.dtype, dtype.as_numpy_dtype, "same_kind")


def _overflows(part: np.ndarray, dtype: tf.DType) -> bool:
    """Whether numbers become others, not only less precise ones."""
    if dtype == tf.string or np.can_cast(part.dtype, dtype.as_numpy_dtype):
        return False
    with np.errstate(over="ignore"):
        cast = part.astype(dtype.as_numpy_dtype)
    return bool(np.any(cast != part if dtype.is_integer else np.isfinite(cast) != np.isfinite(part)))
