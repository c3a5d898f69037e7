"""What a model is trained for: loss and metrics from the data, unless the model was compiled with its own."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.data import Data
from tfopt.data.check import has_integer_labels, output_shape


@dataclasses.dataclass(frozen=True)
class Task:
    """Loss and metrics, as `model.compile` takes them."""

    loss: Any
    metrics: Any
    weighted_metrics: Any = None
    loss_weights: Any = None

    def compile(self, model: keras.Model, optimizer: Any = "sgd", **options: Any) -> None:
        """Compiles the model for this task.

        Plain SGD, for models that are only evaluated and saved, has no state: Adam's would triple the file.
        """
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        model.compile(optimizer=optimizer, **own, **options)


def build_state(model: keras.Model, batches: tf.data.Dataset) -> None:
    """Makes the variables of a compiled model's optimizer and metrics: a step that has to make them is traced twice."""
    model._symbolic_build(data_batch=batches.element_spec)


def task_of(model: keras.Model, data: Data) -> Task:
    """The model's own loss and metrics where it is compiled, else those of the data's kind of task.

    Integer labels: cross-entropy and accuracy, binary for a single output unit. Float targets as wide as the
    output of a softmax: categorical cross-entropy. Other float targets: mean squared and absolute error.

    Raises:
      ValueError: several outputs without a loss, or labels that do not fit the output.
    """
    if model.compiled:
        return own_task(model)
    shape = output_shape(model, data)
    if not isinstance(shape, tuple):
        raise ValueError(
            f"the model {model.name!r} has several outputs, so its loss cannot be guessed: call "
            "model.compile(loss=...) before handing it to tfopt"
        )
    units = shape[-1]
    if has_integer_labels(data):
        if units == 1:
            logits = not _ends_with(model, keras.activations.sigmoid)
            return Task(
                keras.losses.BinaryCrossentropy(from_logits=logits),
                [keras.metrics.BinaryAccuracy("accuracy", threshold=0.0 if logits else 0.5)],
            )
        logits = not _is_distribution(model, data)
        return Task(keras.losses.SparseCategoricalCrossentropy(from_logits=logits), ["accuracy"])
    target = data.element_spec[1]
    if not isinstance(target, tf.TensorSpec):
        raise ValueError(
            f"the data {data.name!r} give {len(tf.nest.flatten(target))} targets, "
            f"the model {model.name!r} has one output"
        )
    # Keras takes single numbers and rows of one number for the same.
    accepted = [shape[1:], shape[1:-1]] if units == 1 else [shape[1:]]
    if not any(target.shape[1:].is_compatible_with(each) for each in accepted):
        raise ValueError(
            f"the data {data.name!r} give targets of shape {tuple(target.shape[1:])} an example, the model "
            f"{model.name!r} outputs of shape {shape[1:]}: make them equal, or compile the model with a loss of "
            "its own"
        )
    if _is_distribution(model, data):
        return Task(keras.losses.CategoricalCrossentropy(), ["accuracy"])
    return Task("mean_squared_error", ["mean_absolute_error"])


def own_task(model: keras.Model) -> Task:
    """The loss and metrics that a model was compiled with.

    Raises:
      ValueError: there is no loss, or one that cannot be written down.
    """
    advice = (
        "use a Keras loss by name or object, or register your own losses and metrics with "
        "@keras.saving.register_keras_serializable"
    )
    try:
        config = model.get_compile_config() or {}
        parts = {
            field.name: keras.saving.deserialize_keras_object(config.get(field.name))
            for field in dataclasses.fields(Task)
        }
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the model {model.name!r} is compiled with a loss or metric that cannot be written down: {advice}. "
            f"Keras said: {error}"
        ) from error
    if parts["loss"] is None:
        raise ValueError(f"the model {model.name!r} is compiled without a loss, so it cannot be trained: {advice}")
    return Task(**parts)


def _ends_with(model: keras.Model, activation: Any) -> bool:
    last = model
    while isinstance(last, keras.Model) and last.layers:
        last = last.layers[-1]
    return getattr(last, "activation", None) is activation


def _is_distribution(model: keras.Model, data: Data) -> bool:
    """Whether outputs are probabilities, seen on a batch: however the model computes its softmax."""
    x = next(iter(data.batches("validation")))[0]
    return is_distribution(keras.ops.convert_to_numpy(model(x, training=False)))


def is_distribution(outputs: np.ndarray) -> bool:
    """Whether the numbers along the last axis are at least 0 and sum to 1, as far as a model that rounds can tell.

    >>> is_distribution(np.array([[0.25, 0.75]])), is_distribution(np.array([[0.5, 0.75]]))
    (True, False)
    """
    outputs = outputs.astype("float64")
    # A quantized model rounds each to 1/256.
    rounding = min(outputs.shape[-1] / 512, 0.5)
    within = (outputs >= 0).all() and (outputs <= 1.01).all()
    return bool(within and np.allclose(outputs.sum(-1), 1, atol=0.01 + rounding))
