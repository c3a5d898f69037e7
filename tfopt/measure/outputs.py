"""Labelled examples in memory, and what a Keras model makes of them."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.tflite.examples import InputSpec, read_examples
from tfopt.tflite.model import call_named, static_batch

_BATCH = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Examples in memory: inputs by name, each of shape (examples, …), with labels and weights where there are any."""

    inputs: dict[str, np.ndarray]
    labels: Any = None
    weights: Any = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def read_labelled(data: Any, specs: list[InputSpec], limit: int, split: str, purpose: str) -> Labelled:
    """What `read_examples` reads, with the sample weights, in one pass."""
    data, is_weighted = _with_weights(data, split, len(specs))
    examples = read_examples(data, specs, limit, split, purpose)
    labels, weights = examples.labels if is_weighted else (examples.labels, None)
    return Labelled(examples.inputs, labels, weights)


def keras_outputs(model: keras.Model, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The outputs of a model by name, and the mask that Keras attached to the first: False where steps do not count.

    Args:
      model: a built model.
      inputs: in the model's order, each of shape (examples, …).
    """
    count, size = len(next(iter(inputs.values()))), static_batch(model) or _BATCH
    parts: list[dict[str, np.ndarray]] = []
    masks: list[np.ndarray] = []
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        full = np.resize(rows, size) if static_batch(model) else rows
        outputs = call_named(model, [keras.ops.convert_to_tensor(values[full]) for values in inputs.values()])
        # Keras' own name for it: its losses and metrics read the mask here.
        mask = getattr(next(iter(outputs.values())), "_keras_mask", None)
        if mask is not None:
            masks.append(np.asarray(mask)[: len(rows)])
        parts.append({name: np.asarray(values)[: len(rows)] for name, values in outputs.items()})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return joined, np.concatenate(masks) if masks else None


def of_first(values: Any, name: str) -> Any:
    """What belongs to the first output, of labels, weights or losses given for each output."""
    if isinstance(values, dict):
        return values.get(name, next(iter(values.values())))
    if isinstance(values, list | tuple):
        return values[0]
    return values


def masked(weights: Any, mask: np.ndarray | None) -> Any:
    """Weights that are 0 where the mask is False.

    >>> masked(np.array([2.0, 1.0]), np.array([[True, False], [True, True]]))
    array([[2., 0.],
           [1., 1.]])
    """
    if mask is None:
        return weights
    if weights is None:
        return mask.astype(np.float64)
    weights = np.asarray(weights)
    return mask * weights.reshape(weights.shape + (1,) * (mask.ndim - weights.ndim))


def _with_weights(data: Any, split: str, inputs: int) -> tuple[Any, bool]:
    """The data with (labels, weights) in the place of the labels, and whether they have weights."""
    stream = data
    if hasattr(data, "batches"):
        is_training = split == "train" and hasattr(data, "training_batches")
        stream = data.training_batches(augmented=False) if is_training else data.batches(split)
    spec = stream.element_spec if isinstance(stream, tf.data.Dataset) else stream
    is_weighted = (
        isinstance(spec, tuple)
        and len(spec) == 3
        # A tuple of arrays for a model of several inputs is its inputs.
        and (inputs == 1 or isinstance(spec[0], tuple | list | dict))
        and spec[2] is not None
    )
    if not is_weighted:
        return data, False
    if isinstance(stream, tf.data.Dataset):
        return stream.map(lambda x, y, weights: (x, (y, weights))), True
    x, y, weights = data
    return (x, (y, weights)), True
