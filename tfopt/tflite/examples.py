"""Examples for calibration and verification, from whatever holds them."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.config import require


@dataclasses.dataclass(frozen=True, eq=False)
class InputSpec:
    """One input of a model: its name, its shape without the batch (None: any size), its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Examples in memory: inputs by name, each of shape (examples, …), and labels where the data have any."""

    inputs: dict[str, np.ndarray]
    labels: Any = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def read_examples(data: Any, specs: list[InputSpec], limit: int, split: str, purpose: str) -> Examples:
    """Takes examples of the data and checks them against a model's inputs.

    Sorted data should not give those of one class only: of arrays they are evenly spaced, of tfopt's `Data` those
    that the first epoch begins with; of a dataset they are the first ones.

    Args:
      data: a batched `tf.data.Dataset` of x, (x, y) or (x, y, weights); arrays in the same arrangement; or
        an object with a method `batches(split)` that gives such a dataset. x is an array; for several inputs
        a tuple, list or dict by input name. For a model of one input a tuple is (x, y).
      specs: the model's inputs, in order.
      limit: so many examples at most, at least 1.
      split: for objects with `batches(split)`.
      purpose: what the data are called in messages, such as "calibration_data".

    Raises:
      TypeError: the data are of another kind.
      ValueError: they are empty, not finite, or of another shape than the model's inputs.
    """
    require(limit >= 1, f"at least 1 example is needed, received {limit}")
    inputs: list[list[np.ndarray]] = [[] for _ in specs]
    labels: list[Any] = []
    count = 0
    for batch in _batches(data, limit, split, purpose, specs):
        x, y = _split(batch, specs, purpose)
        arrays = [_checked(np.asarray(each), spec, purpose) for each, spec in zip(x, specs, strict=True)]
        size = _size([*arrays, *keras.tree.flatten(y)], purpose)
        take = min(size, limit - count)
        for chunks, array in zip(inputs, arrays, strict=True):
            chunks.append(array[:take])
        if y is not None:
            labels.append(keras.tree.map_structure(lambda part, take=take: np.asarray(part)[:take], y))
        count += take
        if count >= limit:
            break
    require(count > 0, f"{purpose} is empty: give it at least one example")
    joined = {spec.name: np.concatenate(chunks) for spec, chunks in zip(specs, inputs, strict=True)}
    if not labels:
        return Examples(joined)
    return Examples(joined, keras.tree.map_structure(lambda *parts: np.concatenate(parts), *labels))


def _batches(data: Any, limit: int, split: str, purpose: str, specs: list[InputSpec]) -> Iterable[Any]:
    if split == "train" and hasattr(data, "training_batches"):
        # Ranges are those of what the model will see.
        return _numpy(data.training_batches(augmented=False))
    if hasattr(data, "batches"):
        return _numpy(data.batches(split))
    if isinstance(data, tf.data.Dataset):
        return _numpy(data)
    is_nest = isinstance(data, tuple | list | dict) and len(data) > 0 and _are_arrays(data)
    if is_nest or isinstance(data, np.ndarray | tf.Tensor):
        return [_spread(data, limit, purpose)]
    raise TypeError(
        f"{purpose} must be a batched tf.data.Dataset, a NumPy array (for {len(specs)} input(s): "
        f"{', '.join(spec.name for spec in specs)}), or an object with batches(split); received "
        f"{type(data).__name__}"
    )


def _spread(data: Any, limit: int, purpose: str) -> Any:
    """Evenly spaced rows of arrays, the first one among them."""
    arrays = [None if each is None else np.asarray(each) for each in keras.tree.flatten(data)]
    size = _size(arrays, purpose)
    if size <= limit:
        return data
    rows = np.arange(limit) * size // limit
    return keras.tree.pack_sequence_as(data, [None if each is None else each[rows] for each in arrays])


def _numpy(dataset: Iterable[Any]) -> Iterator[Any]:
    for batch in dataset:
        yield tf.nest.map_structure(np.asarray, batch)


def _are_arrays(data: Any) -> bool:
    return all(each is None or hasattr(each, "__array__") for each in keras.tree.flatten(data))


def _split(batch: Any, specs: list[InputSpec], purpose: str) -> tuple[list[Any], Any]:
    """Tells the inputs from the labels; returns the inputs in the model's order, and the labels or None."""
    x, y = batch, None
    if isinstance(batch, tuple):
        is_labelled = len(specs) == 1 or isinstance(batch[0], tuple | list | dict)
        if is_labelled:
            require(
                len(batch) <= 3,
                f"{purpose} gives tuples of {len(batch)}, expected x, (x, y) or (x, y, weights)",
            )
            x, y = batch[0], batch[1] if len(batch) > 1 else None
    names = [spec.name for spec in specs]
    if isinstance(x, dict):
        missing = [name for name in names if name not in x]
        require(
            not missing,
            f"{purpose} has no {', '.join(missing)}: it gives {', '.join(x)}; the model's inputs are "
            f"{', '.join(names)}",
        )
        return [x[name] for name in names], y
    parts = list(x) if isinstance(x, tuple | list) else [x]
    require(
        len(parts) == len(specs),
        f"{purpose} gives {len(parts)} input(s), the model has {len(specs)}: {', '.join(names)}. For several "
        "inputs give ((a, b), y) or a dict by input name",
    )
    return parts, y


def _checked(array: np.ndarray, spec: InputSpec, purpose: str) -> np.ndarray:
    fits = array.ndim == len(spec.shape) + 1 and all(
        wanted is None or wanted == size for wanted, size in zip(spec.shape, array.shape[1:], strict=True)
    )
    expected = f"(batch, {', '.join(map(str, spec.shape))})" if spec.shape else "(batch,)"
    unbatched = ". Is the dataset batched? Call .batch(32) on it" if array.ndim == len(spec.shape) else ""
    require(
        fits,
        f"{purpose} has shape {array.shape} for the input {spec.name!r}, expected {expected}{unbatched}",
    )
    require(
        array.dtype.kind in "biuf" or array.dtype.name == "bfloat16",
        f"{purpose} has dtype {array.dtype} for the input {spec.name!r}, expected numbers ({spec.dtype})",
    )
    if array.dtype.kind not in "biu":
        bad = ~np.isfinite(array.astype(np.float32))
        require(
            not bad.any(),
            f"{purpose} holds {int(bad.sum())} NaN or infinite value(s) for the input {spec.name!r}: remove "
            "or repair those examples",
        )
    return array.astype(spec.dtype, copy=False)


def _size(arrays: list[Any], purpose: str) -> int:
    sizes = {len(np.atleast_1d(each)) for each in arrays if each is not None}
    require(len(sizes) == 1, f"{purpose} has arrays of different lengths: {sorted(sizes)}")
    return sizes.pop()
