"""`recalibrate`: new statistics for BatchNormalization, after weights were changed."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import require
from tfopt.data import Data


def recalibrate(model: keras.Model, data: Data, batches: int | None = None) -> None:
    """Sets the moving statistics of each BatchNormalization to those of the training split, not augmented.

    Each batch is normalized by its own mean and variance, as in training; all else computes as it does afterwards: a
    Dropout drops nothing. Means and variances are those over all examples of the batches, the variance between batches
    included; of a layer that is called twice, those of its last call. For after pruning, or when weights were averaged.
    Frozen layers keep their statistics; weights stay.

    Args:
      model: a built Keras model of any kind; changed in place.
      data: its training split is read, in the order of the first epoch.
      batches: how many are used at most, at least 1; None: all.

    Raises:
      ValueError: the model has no BatchNormalization that is trainable, or one with `renorm`.

    Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, arXiv:2105.07576, section 3.

    >>> import numpy as np
    >>> from tfopt.data import from_arrays
    >>> x, y = np.arange(20, dtype="float32").reshape(10, 2), np.arange(10) % 2
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    >>> recalibrate(model, from_arrays((x, y), (x, y), (x, y), batch_size=4))
    >>> model.layers[0].moving_mean.numpy().tolist(), model.layers[0].moving_variance.numpy().tolist()
    ([9.0, 10.0], [33.0, 33.0])
    """
    require(
        batches is None or (isinstance(batches, int) and batches >= 1),
        f"batches must be None or a whole number from 1, received {batches!r}",
    )
    layers = _normalizations(model)
    require(
        bool(layers), f"{model.name!r} has no BatchNormalization that is trainable: there is nothing to recalibrate"
    )
    for layer in layers:
        require(
            not layer.renorm, f"the layer {layer.name!r} has renorm=True, whose statistics come from training alone"
        )
    # float64: the variance is a small difference of large sums.
    zeros = [tf.zeros(layer.moving_mean.shape, tf.float64) for layer in layers]
    sums = [(tf.Variable(each), tf.Variable(each)) for each in zeros]
    examples = tf.Variable(0.0, dtype=tf.float64)

    @tf.function(autograph=False, reduce_retracing=True)
    def add(x: Any) -> None:
        model(x, training=False)
        size = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float64)
        for layer, (total, squares) in zip(layers, sums, strict=True):
            mean, variance = (tf.cast(each.value, tf.float64) for each in (layer.moving_mean, layer.moving_variance))
            total.assign_add(size * mean)
            squares.assign_add(size * (variance + mean**2))
        examples.assign_add(size)

    with _measuring(layers):
        for batch in data.training_batches(augmented=False).take(-1 if batches is None else batches):
            add(batch[0])
    for layer, (total, squares) in zip(layers, sums, strict=True):
        mean = total / examples
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(tf.maximum(squares / examples - mean**2, 0.0))


def has_own_statistics(model: keras.Model) -> bool:
    """Whether there is something that `recalibrate` would measure."""
    return bool(_normalizations(model))


def _normalizations(model: keras.Model) -> list[Any]:
    layers = model._flatten_layers()
    return [each for each in layers if isinstance(each, keras.layers.BatchNormalization) and each.trainable]


@contextlib.contextmanager
def _measuring(layers: list[Any]) -> Iterator[None]:
    """Inside the block, the layers' moving statistics are those of the batch that they have just normalized."""
    before = [(layer.__class__, layer.momentum) for layer in layers]
    try:
        for layer in layers:
            kind = layer.__class__
            layer.__class__ = type(kind.__name__, (_Measures, kind), {"__module__": kind.__module__})
            layer.momentum = 0.0
        yield
    finally:
        for layer, (kind, momentum) in zip(layers, before, strict=True):
            layer.__class__, layer.momentum = kind, momentum


class _Measures:
    """Normalizes by the statistics of the batch, whatever the rest of the model does."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return super().call(inputs, training=True, mask=mask)  # type: ignore[misc]
