"""`calibrate`: finds the ranges of a quantization-aware model before it is trained."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.frozen import is_quantized
from tfopt.tflite.examples import read_examples
from tfopt.tflite.model import call_named, input_specs, static_batch

_BATCH = 32


def calibrate(model: keras.Model, data: Any, examples: int = 320) -> None:
    """Runs examples through a quantization-aware model, so that its ranges are those of its activations.

    Activations pass unrounded meanwhile, so that a range does not depend on the rounding before it. A range is the mean
    over the batches of the least and greatest value; training goes on from there.

    Args:
      model: from `quantize_aware`; changed in place.
      data: typical examples: arrays, a batched dataset, or tfopt's `Data` (its train split).
      examples: how many are used at most, at least 1: evenly spaced ones of arrays, the first ones of a dataset.

    Raises:
      ValueError: the model is not quantization-aware, or the data do not fit it.

    >>> from tfopt.quantize.aware import quantize_aware
    >>> model = quantize_aware(keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(2)]))
    >>> calibrate(model, np.array([[-1.0, 2.0], [0.5, 3.0]]))
    >>> layer = model.layers[1]
    >>> float(layer.low), float(layer.high)
    (-1.0, 3.0)
    """
    require(is_quantized(model), f"{model.name!r} is not quantization-aware: call quantize_aware(model) first")
    specs = input_specs(model)
    inputs = list(read_examples(data, specs, examples, "train", "data").inputs.values())
    quantizers = [layer for layer in model._flatten_layers() if isinstance(layer, FakeQuant)]
    size, count = static_batch(model) or _BATCH, len(inputs[0])
    for layer in quantizers:
        layer.calibrates = True
    try:

        @tf.function(autograph=False)
        def run(*tensors: tf.Tensor) -> None:
            call_named(model, list(tensors))

        for start in range(0, count, size):
            # A static batch is always full.
            rows = np.arange(start, start + size) % count if static_batch(model) else slice(start, start + size)
            run(*(tf.constant(values[rows]) for values in inputs))
    finally:
        for layer in quantizers:
            layer.calibrates = False
