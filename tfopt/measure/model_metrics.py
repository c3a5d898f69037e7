"""`metrics`: how good a Keras model or a .tflite file is on data."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfopt.config import require
from tfopt.measure.outputs import keras_outputs, masked, of_first, read_labelled
from tfopt.measure.scores import TASKS, Metrics, Task, score
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.metric import Metric, choose_metric
from tfopt.tflite.model import float32_model, input_specs
from tfopt.tflite.noise import run_by_name
from tfopt.tflite.run import file_specs

TASK_OF: dict[str, Task] = {
    "accuracy": "multi-class",
    "binary_accuracy": "binary",
    "mean_absolute_error": "regression",
}
_LOSS_OF = {"binary": "binary_crossentropy", "multi-class": "crossentropy", "regression": "mean_squared_error"}


def metrics(
    model: keras.Model | str | os.PathLike[str],
    data: Any,
    split: str = "test",
    *,
    task: Task | None = None,
    class_names: Sequence[str] = (),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Metrics:
    """Accuracy, precision, recall, F1 and AUC, or MAE, RMSE, MAPE and Pearson's correlation, with bootstrap intervals.

    Of a model with several outputs the first is scored. A mask that Keras attaches to the output leaves steps out; a
    .tflite file has none, so give weights of 0 in the data there.

    Args:
      model: a Keras model, taken in float32, or the path of a .tflite file; its outputs are dequantized.
      data: `Data`; or a batched dataset or arrays (x, y) or (x, y, weights).
      split: of `Data`.
      task: "binary", "multi-class" or "regression"; None: by the model's loss where it is compiled, else by labels and
        outputs.
      class_names: one for each class; empty: those of `Data`, else their numbers.
      level: confidence of the intervals, in (0, 1).
      resamples: of the bootstrap, at least 1.
      seed: the same seed gives the same intervals.

    Raises:
      FileNotFoundError: there is no such file.
      TypeError: it is neither a Keras model nor a path.
      ValueError: data without labels, or that do not fit; a value out of range.

    >>> import keras, numpy as np
    >>> from tfopt.measure import metrics
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    >>> found = metrics(model, (np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([1, 1])))
    >>> found.values["accuracy"].value, found.confusion
    (0.5, [[0, 0], [1, 1]])
    """
    require(task is None or task in TASKS, f"task must be one of {', '.join(TASKS)} or None, received {task!r}")
    mask, loss = None, None
    if isinstance(model, str | os.PathLike):
        specs = file_specs(read_tflite(model))
        examples = read_labelled(data, specs, sys.maxsize, split, "data")
        outputs = run_by_name(model, examples.inputs, use_xnnpack=True)
    else:
        loss = model.loss if isinstance(model, keras.Model) and model.compiled else None
        model = float32_model(model)
        examples = read_labelled(data, input_specs(model), sys.maxsize, split, "data")
        outputs, mask = keras_outputs(model, examples.inputs)
    require(examples.labels is not None, "data has no labels: give (x, y), there is nothing to compare outputs with")
    first = next(iter(outputs))
    labels, weights = of_first(examples.labels, first), of_first(examples.weights, first)
    metric = choose_metric(_LOSS_OF[task] if task else of_first(loss, first), labels, outputs[first])
    assert metric is not None
    return score_outputs(
        metric,
        labels,
        outputs[first],
        masked(weights, mask),
        class_names or getattr(data, "class_names", ()),
        level=level,
        resamples=resamples,
        seed=seed,
    )


def score_outputs(
    metric: Metric, labels: Any, outputs: np.ndarray, weights: Any, names: Sequence[str] = (), **options: Any
) -> Metrics:
    """Scores outputs by the task that a metric is for.

    Args:
      metric: see `choose_metric`.
      labels: see `score`.
      outputs: likewise.
      weights: likewise.
      names: of the classes; a model may tell more apart than the data name, whose numbers are taken then.
      options: of `score`.
    """
    task = TASK_OF[metric.name]
    if task == "multi-class":
        names = [*names, *map(str, range(len(names), outputs.shape[-1]))]
    elif len(names) != 2 or (outputs.ndim > 1 and outputs.shape[-1] > 1):
        # The names are those of several outputs, not of yes and no.
        names = ()
    return score(task, labels, outputs, weights, threshold=metric.threshold, class_names=names, **options)
