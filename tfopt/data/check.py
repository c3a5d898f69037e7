"""A look at the data before anything is trained on them."""

import math
import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.dataset import SPLITS, Data

# A chain checks the same data for each of its stages; they are read once.
_checked: "weakref.WeakKeyDictionary[Data, dict[Any, dict[str, int]]]" = weakref.WeakKeyDictionary()


def check_data(data: Data, model: keras.Model | None = None, max_examples: int = 100_000) -> dict[str, int]:
    """Finds what would spoil training: NaN inputs, labels out of range, a single class, shapes that differ.

    Args:
      data: the data to look at, as the model will receive them (after `Data.transform`).
      model: the model that will be trained on them; its input shapes and number of outputs are compared.
      max_examples: at most so many examples of each split are read.

    Returns:
      The examples read, by split.

    Raises:
      ValueError: names the split, the first bad example and the way out; or targets that are text.

    >>> from tfopt.data.dataset import from_arrays
    >>> check_data(from_arrays((np.zeros((20, 2)), np.arange(20) % 2)))
    {'train': 16, 'validation': 2, 'test': 2}
    """
    texts = [spec for spec in tf.nest.flatten(data.element_spec[1]) if spec.dtype == tf.string]
    require(
        not texts,
        f"the targets of {data.name!r} are text: number the classes, for instance with class_names, y = "
        "np.unique(y, return_inverse=True)",
    )
    classes = None
    if model is not None:
        _check_shapes(data, model)
        classes = number_of_classes(data, model)
    elif has_integer_labels(data) and data.class_names:
        classes = len(data.class_names)
    known = _checked.setdefault(data, {})
    if (classes, max_examples) not in known:
        known[classes, max_examples] = {split: _check_split(data, split, classes, max_examples) for split in SPLITS}
    return known[classes, max_examples]


def has_integer_labels(data: Data) -> bool:
    """Whether the target is a single integer label an example, of shape () or (1,)."""
    target = data.element_spec[1]
    return isinstance(target, tf.TensorSpec) and target.dtype.is_integer and math.prod(target.shape[1:]) == 1


def number_of_classes(data: Data, model: keras.Model) -> int | None:
    """Classes that the model tells apart, where the task is a classification with integer labels."""
    loss = model.loss if model.compiled else "crossentropy"
    if not has_integer_labels(data) or "crossentropy" not in getattr(loss, "name", str(loss)):
        return None
    shape = output_shape(model, data)
    if not isinstance(shape, tuple):
        return None
    return 2 if shape[-1] == 1 else shape[-1]


def output_shape(model: keras.Model, data: Data) -> Any:
    """Shape of the model's output, or a structure of shapes; a subclassed model is called on one example."""
    if getattr(model, "outputs", None):
        return model.output_shape
    outputs = model(next(iter(data.batches("validation", 1)))[0], training=False)
    return tf.nest.map_structure(lambda tensor: (None, *tensor.shape[1:]), outputs)


def _check_shapes(data: Data, model: keras.Model) -> None:
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return
    specs = data.element_spec[0]
    if isinstance(specs, dict):
        missing = [tensor.name for tensor in inputs if tensor.name not in specs]
        require(
            not missing,
            f"the model {model.name!r} wants the inputs {', '.join(t.name for t in inputs)}; "
            f"the data give {', '.join(specs)}",
        )
        given = [specs[tensor.name] for tensor in inputs]
    else:
        given = tf.nest.flatten(specs)
    require(
        len(given) == len(inputs),
        f"the model {model.name!r} has {len(inputs)} inputs, the data {data.name!r} give {len(given)}",
    )
    for tensor, spec in zip(inputs, given, strict=True):
        wanted, received = tuple(tensor.shape[1:]), tuple(spec.shape[1:])
        fits = len(wanted) == len(received) and all(
            a is None or b is None or a == b for a, b in zip(wanted, received, strict=True)
        )
        require(
            fits,
            f"the model {model.name!r} takes examples of shape {wanted} at its input {tensor.name!r}, the "
            f"data {data.name!r} give {received}: resize or reshape them, or build the model for that shape",
        )


def _check_split(data: Data, split: Any, classes: int | None, max_examples: int) -> int:
    labelled = has_integer_labels(data)
    seen, labels = 0, set[int]()
    for batch in data.batches(split):
        for name, part in zip(("inputs", "targets", "sample weights"), batch, strict=False):
            for tensor in tf.nest.flatten(part):
                if tensor.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(tensor))):
                    bad = np.isfinite(tensor.numpy()).reshape(tensor.shape[0], -1).all(axis=1)
                    raise ValueError(
                        f"the {name} of {data.name!r} hold NaN or infinity: first in the {split} split, "
                        f"example {seen + int(np.argmin(bad))}; remove or repair it"
                    )
        if labelled:
            y = batch[1].numpy()
            values = np.unique(y)
            outside = values[(values < 0) | (values >= classes)] if classes else values[values < 0]
            if outside.size:
                where = seen + int(np.argmax(np.isin(np.ravel(y), outside)))
                raise ValueError(
                    f"the label {outside[0]} of {data.name!r} is out of range: first in the {split} split, "
                    f"example {where}; expected integers from 0 to "
                    f"{classes - 1 if classes else 'the number of classes - 1'}"
                )
            labels.update(values.tolist())
        seen += int(tf.nest.flatten(batch)[0].shape[0])
        if seen >= max_examples:
            break
    if labelled and split == "train" and len(labels) == 1:
        raise ValueError(
            f"the train split of {data.name!r} has one class only (label {labels.pop()}): there is nothing "
            "to learn; check the labels, or how the split was made"
        )
    return seen
