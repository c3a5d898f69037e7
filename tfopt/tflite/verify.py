"""Proof that a .tflite file computes what its Keras model computes."""

import dataclasses
import os
from typing import Any

import keras
import numpy as np

from tfopt.config import require
from tfopt.measure.file import weight_tensors
from tfopt.measure.outputs import keras_outputs, masked, of_first, read_labelled
from tfopt.record import Record
from tfopt.tflite.flatbuffer import FlatBuffer, read_tflite
from tfopt.tflite.layers import LayerError, compare_layers
from tfopt.tflite.metric import Metric, choose_metric
from tfopt.tflite.model import float32_model, input_specs
from tfopt.tflite.noise import KernelNoise, differences, kernel_noise, run_by_name

# Relative RMS error of a layer above which it counts as divergent, by the kind of file: several times what
# sound conversions of convolutional and dense networks showed.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "dynamic": 0.1, "int16x8": 0.05, "int8": 0.2}


@dataclasses.dataclass(frozen=True)
class Verification(Record):
    """What `verify_tflite` found.

    Args:
      examples: how many were compared.
      kind: how the file computes, see `kind_of_file`.
      argmax_agreement: fraction of decisions that agree, in [0, 1]: the argmax over the last axis of the
        first output, or for one unit with a binary task which side of the threshold it is on; None where
        the task has no decisions.
      max_lsb: largest |keras - file| over all outputs, in quantization steps (scales) of the file's output, or of
        the integers that a float output is converted from; Keras' values are not rounded first. None if any output
        is computed in float: floats have no common step.
      mean_lsb: its mean.
      max_abs_error: largest |keras - file| over all outputs, in the model's units.
      metric: name of the task metric on the first output: "accuracy" (integer or one-hot labels),
        "binary_accuracy" (one unit, or several with a binary loss) or "mean_absolute_error" (all others; the
        compiled loss decides, else labels and outputs); None without labels.
      keras_metric: of the Keras model, in float32.
      tflite_metric: of the file.
      tolerance: relative RMS error above which a layer counts as divergent.
      first_divergent_layer: the first in graph order above the tolerance, or None.
      layers: errors of all layers whose output is found in the file, in graph order.
      noise: what LiteRT's kernels themselves differ by.
    """

    examples: int
    kind: str
    argmax_agreement: float | None
    max_lsb: float | None
    mean_lsb: float | None
    max_abs_error: float
    metric: str | None
    keras_metric: float | None
    tflite_metric: float | None
    tolerance: float
    first_divergent_layer: str | None
    layers: list[LayerError]
    noise: KernelNoise

    @property
    def accuracy(self) -> float | None:
        """Of the file; None where it is measured by something else, or not at all."""
        return self.tflite_metric if self.metric in ("accuracy", "binary_accuracy") else None


def verify_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    data: Any,
    max_examples: int = 1000,
    split: str = "test",
    tolerance: float | None = None,
    layer_examples: int = 8,
    use_xnnpack: bool = True,
    noise_examples: int = 1000,
) -> Verification:
    """Compares a .tflite file with the Keras model it was made from, as a whole and layer by layer.

    The layers are compared on LiteRT's built-in kernels, which alone keep the tensors between operators.

    Args:
      model: the Keras model; compared in float32 whatever its dtype policy.
      path: the file.
      data: examples as for `export_tflite`, with labels where the metric is wanted: (x, y).
      max_examples: the first so many are used, at least 1.
      split: of data with `batches(split)`.
      tolerance: relative RMS error of a layer, above 0; None: by the file's number formats, see `TOLERANCES`.
      layer_examples: examples for the comparison by layer, at least 1.
      use_xnnpack: run the whole file on XNNPACK as phones do, else on the built-in kernels.
      noise_examples: the first so many also show what the kernels differ by, at least 1.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: file, model and data do not fit each other, or the file is damaged.

    >>> import tempfile, tfopt.tflite.export as export
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "m.tflite")
    ...     _ = export.export_tflite(model, path)
    ...     verify_tflite(model, path, np.eye(4)).argmax_agreement
    1.0
    """
    require(layer_examples >= 1, f"layer_examples must be at least 1, received {layer_examples!r}")
    require(noise_examples >= 1, f"noise_examples must be at least 1, received {noise_examples!r}")
    require(tolerance is None or tolerance > 0, f"tolerance must be above 0, received {tolerance!r}")
    pair = run_both(model, path, data, max_examples, split, use_xnnpack)
    return compare(pair, tolerance, layer_examples, noise_examples)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """What a Keras model and its file make of the same examples.

    Args:
      model: in float32.
      file: the file.
      inputs: by name, each of shape (examples, …).
      labels: of the first output; None: there are none.
      weights: of the first output's labels, 0 where Keras masks a step; None: all count alike.
      expected: the model's outputs by name, in its order.
      received: the file's, dequantized.
      metric: what the first output is measured by; None: unknown.
    """

    model: keras.Model
    file: FlatBuffer
    inputs: dict[str, np.ndarray]
    labels: Any
    weights: Any
    expected: dict[str, np.ndarray]
    received: dict[str, np.ndarray]
    metric: Metric | None

    def first(self) -> tuple[np.ndarray, np.ndarray]:
        """The first output, of the model and of the file."""
        name = next(iter(self.expected))
        return self.expected[name], self.received[name]


def run_both(
    model: keras.Model, path: str | os.PathLike[str], data: Any, limit: int, split: str = "test", xnnpack: bool = True
) -> Pair:
    """Runs model and file on at most `limit` of the same examples; arguments and errors as of `verify_tflite`."""
    file = read_tflite(path)
    loss = model.loss if isinstance(model, keras.Model) and model.compiled else None
    model = float32_model(model)
    examples = read_labelled(data, input_specs(model), limit, split, "data")
    expected, mask = keras_outputs(model, examples.inputs)
    _check_fit(model, file, examples.inputs, expected)
    received = run_by_name(path, examples.inputs, xnnpack)
    first = next(iter(expected))
    labels, weights = of_first(examples.labels, first), of_first(examples.weights, first)
    metric = choose_metric(of_first(loss, first), labels, expected[first])
    return Pair(model, file, examples.inputs, labels, masked(weights, mask), expected, received, metric)


def compare(
    pair: Pair, tolerance: float | None = None, layer_examples: int = 8, noise_examples: int = 1000
) -> Verification:
    """Compares what model and file gave; arguments as of `verify_tflite`."""
    kind = kind_of_file(pair.file)
    tolerance = TOLERANCES[kind] if tolerance is None else tolerance
    layers = compare_layers(pair.model, pair.file, _head(pair.inputs, layer_examples), tolerance)
    divergent = [layer.name for layer in layers if layer.error > tolerance]
    scored = None if pair.labels is None else pair.metric
    expected, received = pair.first()
    return Verification(
        examples=len(expected),
        kind=kind,
        **differences(pair.file, pair.metric, pair.expected, pair.received),
        metric=scored.name if scored else None,
        keras_metric=scored.measure(pair.labels, expected) if scored else None,
        tflite_metric=scored.measure(pair.labels, received) if scored else None,
        tolerance=tolerance,
        first_divergent_layer=divergent[0] if divergent else None,
        layers=layers,
        noise=kernel_noise(
            pair.file,
            pair.metric,
            *(_head(each, noise_examples) for each in (pair.inputs, pair.expected, pair.received)),
        ),
    )


def kind_of_file(file: FlatBuffer) -> str:
    """How a file computes: "float32", "float16", "dynamic", "int8" or "int16x8", from its tensors."""
    main = file.graphs[0]
    computed = [main.tensors[i] for operator in main.operators for i in operator.outputs]
    activations = {tensor.dtype for tensor in computed if tensor.quantization is not None}
    weights = {weight.tensor.dtype for weight in weight_tensors(file)}
    if "int16" in activations:
        return "int16x8"
    if activations & {"int8", "uint8"}:
        return "int8"
    if weights & {"int8", "int4"}:
        return "dynamic"
    return "float16" if "float16" in weights else "float32"


def _check_fit(
    model: keras.Model, file: FlatBuffer, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
    for kind, wanted, received in (
        ("inputs", inputs, file.inputs),
        ("outputs", expected, file.outputs),
    ):
        require(
            sorted(wanted) == sorted(received),
            f"the model {model.name!r} has the {kind} {', '.join(wanted)}, the file {file.path} has "
            f"{', '.join(received)}: it was exported from another model",
        )
        for name, values in wanted.items():
            shape = received[name].shape
            fits = len(shape) == values.ndim and all(
                a in (-1, b) for a, b in zip(shape[1:], values.shape[1:], strict=True)
            )
            require(
                fits,
                f"{name!r} has shape {values.shape} in the model {model.name!r}, {shape} in the file "
                f"{file.path}: it was exported from another model",
            )


def _head(values: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: each[:count] for name, each in values.items()}
