"""How a stage trains, as plain values for the process that TFMOT works in."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from tfopt.config import require
from tfopt.load.layers import arguments_of
from tfopt.stage import Work
from tfopt.train.fit import Fit
from tfopt.train.rates import Schedule
from tfopt.train.strategies import is_one_device
from tfopt.train.task import task_of

# What `Fit` offers and tf_keras or TFMOT do not, or not in the same way.
_UNKNOWN = (
    "precision",
    "early_stopping",
    "tensorboard",
    "micro_batches",
    "synchronize_every",
    "layer_rates",
    "label_smoothing",
    "distill",
)


def check_fit(work: Work, fit: Fit) -> None:
    """Raises a ValueError where TFMOT cannot train as `fit` says, or on the work's devices."""
    usual = Fit()
    asked = [name for name in _UNKNOWN if getattr(fit, name) != getattr(usual, name)]
    require(
        not asked,
        f"the engine TFMOT trains without {', '.join(f'{name}={getattr(fit, name)!r}' for name in asked)}: leave it "
        "out, or use tfopt's own stage",
    )
    require(
        isinstance(fit.learning_rate, int | float | Schedule),
        f"the engine TFMOT takes a learning rate as a number or a schedule, received {fit.learning_rate!r}",
    )
    found = [name for name in dir(tf_keras.optimizers) if name.lower() == fit.optimizer.lower()]
    require(bool(found), f"tf_keras has no optimizer {fit.optimizer!r}: take adam or sgd")
    require(
        is_one_device(work.strategy),
        "the engine TFMOT trains in one process on one device: leave the strategy out, or use tfopt's own stages",
    )
    task_values(work)


def training_job(work: Work, fit: Fit, epochs: int, rates: Any) -> dict[str, Any]:
    """What the process needs to train; the learning rates by step are written to the file `rates`."""
    data = work.need_data()
    np.save(rates, _rates(fit, epochs * data.steps_per_epoch))
    return {
        **task_values(work),
        "rates": str(rates),
        "optimizer": fit.optimizer.lower(),
        "clip_norm": fit.clip_norm,
        "jit_compile": fit.uses_xla(),
        "steps_per_execution": fit.steps_per_execution,
        "class_weight": fit.class_weights(data),
    }


def _rates(fit: Fit, steps: int) -> np.ndarray:
    """The learning rate of each step."""
    if not isinstance(fit.learning_rate, Schedule):
        return np.array([fit.learning_rate], "float32")
    schedule = fit.learning_rate.over(steps)
    # In a graph, as eager steps take a millisecond each.
    every = tf.data.Dataset.range(steps, output_type=tf.int32).map(lambda step: schedule(step))
    return np.fromiter(every.as_numpy_iterator(), "float32", steps)


def task_values(work: Work) -> dict[str, Any]:
    """Loss and metrics of the work's task as names and configs that tf_keras reads.

    Raises:
      ValueError: one of them is not in tf_keras.
    """
    task = task_of(work.need_model(), work.need_data())
    values = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return {
        name: value
        if name == "loss_weights"
        else _plain(value, tf_keras.losses if name == "loss" else tf_keras.metrics)
        for name, value in values.items()
    }


def _plain(value: Any, module: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(each, module) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, module) for each in value]
    name = getattr(value, "__name__", type(value).__name__)
    theirs: Any = getattr(module, name, None)
    require(
        theirs is not None and (callable(value) or hasattr(value, "get_config")),
        f"tf_keras has no {name}: compile the model with a loss and metrics that both have",
    )
    if inspect.isfunction(value):
        return name
    accepted, config = arguments_of(theirs), value.get_config()
    usual = {key: each.default for key, each in inspect.signature(type(value)).parameters.items()}
    for key in [key for key in config if key not in accepted]:
        dropped = config.pop(key)
        require(
            key == "dtype" or dropped in (None, usual.get(key)),
            f"tf_keras's {name} has no {key}={dropped!r}: compile the model without it",
        )
    config.pop("dtype", None)
    assert isinstance(value, keras.losses.Loss | keras.metrics.Metric)
    return {"class_name": name, "config": config}
