"""Checks that a converted model computes what tf_keras computes."""

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from tfopt.load.convert import Conversion

TOLERANCE = 1e-5
_EPSILON = {"float16": 2e-3, "bfloat16": 2e-2}


def difference(reference: Any, conversion: Conversion) -> str:
    """Runs a tf_keras model and the Keras 3 one made from it on the same random batch.

    Returns:
      "" when every output agrees to 1e-5 of its largest value, or of 1 if that is larger; otherwise a message
      that names the first layer that differs.
    """
    inputs = random_inputs(reference)
    try:
        expected = reference(inputs, training=False)
    except (tf.errors.OpError, ValueError, TypeError) as error:
        warnings.warn(
            f"the loaded model could not be compared with tf_keras, which fails on a random batch: {error}",
            stacklevel=4,
        )
        return ""
    actual = conversion.model(inputs, training=False)
    for layer in conversion.model._flatten_layers():
        if getattr(layer, "stateful", False):
            layer.reset_state()
    worst = max(map(relative_difference, tf.nest.flatten(expected), keras.tree.flatten(actual)))
    if worst <= (allowed := _tolerance(reference)):
        return ""
    return (
        f"the model in Keras 3 differs from tf_keras by {worst:.3g} (allowed: {allowed:g}); "
        f"{_first_difference(reference, conversion, inputs)}. If that layer is in custom_objects, compare "
        "its Keras 3 code with the original; if not, please report it"
    )


def random_inputs(model: Any) -> Any:
    """A batch of two for a tf_keras model: one example of normal values, one of values from 0 to 255."""
    rng = np.random.default_rng(0)
    layers = list(model._flatten_layers())
    bounds = [
        bound
        for layer in layers
        for bound in (getattr(layer, "input_dim", None), getattr(layer, "num_tokens", None))
        if isinstance(bound, int)
    ]
    words = sorted({word for each in layers if hasattr(each, "get_vocabulary") for word in _words(each)})
    return tf.nest.map_structure(lambda spec: _random(spec, rng, bounds, words), model._nested_inputs)


def _words(layer: Any) -> list[str]:
    return [word for word in layer.get_vocabulary() if isinstance(word, str) and word]


def _random(tensor: Any, rng: np.random.Generator, bounds: list[int], words: list[str]) -> tf.Tensor:
    rank = len(tensor.shape)
    free = 64 if rank == 4 else 16 if rank == 5 else 8
    shape = [size or (free if axis else 2) for axis, size in enumerate(tensor.shape)]
    if tensor.dtype == tf.string:
        return tf.constant(rng.choice([*words, "unseen"], shape))
    if tensor.dtype == tf.bool:
        return tf.constant(rng.random(shape) < 0.5)
    if bounds or tensor.dtype.is_integer:
        return tf.cast(rng.integers(0, min(bounds, default=10), shape), tensor.dtype)
    batch = rng.normal(size=shape)
    batch[shape[0] // 2 :] = rng.uniform(0, 255, batch[shape[0] // 2 :].shape)
    return tf.cast(batch, tensor.dtype)


def _tolerance(model: Any) -> float:
    used = {layer.compute_dtype for layer in model._flatten_layers()}
    return max([TOLERANCE, *(_EPSILON[dtype] for dtype in used if dtype in _EPSILON)])


def relative_difference(expected: Any, actual: Any) -> float:
    """The largest difference in any example, as a fraction of that example's largest value or of 1.

    Masked steps do not count: they are padding, and what a layer puts there is left open.
    """
    mask = getattr(expected, "_keras_mask", None)
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        return np.inf
    if expected.dtype.kind not in "fc" and expected.dtype.name != "bfloat16":
        return 0.0 if np.array_equal(expected, actual) else np.inf
    if not expected.size:
        return 0.0
    if mask is not None and mask.shape == expected.shape[: len(mask.shape)]:
        kept = np.asarray(mask).reshape(mask.shape + (1,) * (expected.ndim - len(mask.shape)))
        expected, actual = np.where(kept, expected, 0), np.where(kept, actual, 0)
    expected, actual = (np.float64(each).reshape(len(each) if each.ndim else 1, -1) for each in (expected, actual))
    with np.errstate(invalid="ignore"):
        difference = np.where((expected == actual) | (np.isnan(expected) & np.isnan(actual)), 0, expected - actual)
        scale = np.maximum(1, np.max(np.abs(expected), axis=1, initial=0, where=np.isfinite(expected)))
        error = np.max(np.abs(difference), axis=1) / scale
    return float(np.max(np.where(np.isnan(error), np.inf, error)))


def _first_difference(reference: Any, conversion: Conversion, inputs: Any) -> str:
    for name, before, after in _intermediates(reference, conversion, inputs):
        error = max(map(relative_difference, tf.nest.flatten(before), keras.tree.flatten(after)))
        if error > _tolerance(reference):
            return f"the first layer that differs is {name!r}, by {error:.3g}"
    return "no layer's own output differs"


def _intermediates(reference: Any, conversion: Conversion, inputs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Layer name, tf_keras output and Keras 3 output of each layer, in the order of computation."""
    if isinstance(reference, tf_keras.Sequential):
        before = after = inputs
        for layer in reference.layers:
            before = layer(before)
            after = conversion.convert(layer)(after)
            yield layer.name, before, after
    elif conversion.tensors:
        names, old, new = zip(*conversion.tensors, strict=True)
        yield from zip(
            names,
            tf_keras.Model(reference._nested_inputs, list(old))(inputs, training=False),
            keras.Model(conversion.model._inputs_struct, list(new))(inputs, training=False),
            strict=True,
        )
