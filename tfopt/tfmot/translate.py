"""A Keras 3 model as a tf_keras model of the same layers, configs and weights, and back."""

import dataclasses
import inspect
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tf_keras

from tfopt.config import require
from tfopt.graph import Node, Ref, flatten
from tfopt.load.layers import arguments_of
from tfopt.load.verify import random_inputs, relative_difference
from tfopt.tflite.model import call_named
from tfopt.tflite.quiet import quiet

# Largest difference of an output, as a share of the example's largest value or of 1.
_TOLERANCE = 1e-4
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# What begins as something and is overwritten, what is set with the weights, and what only float32 models may have.
_LEFT_OUT = ("trainable", "dtype", "name", "synchronized")
_MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
_ACTIVATIONS: dict[str, Mapping[str, Any]] = {"Relu": {}, "Relu6": {"max_value": 6.0}}


@dataclasses.dataclass(frozen=True, eq=False)
class Translation:
    """A tf_keras model, and what belongs to what in the Keras 3 one.

    Args:
      model: of tf_keras, nested models inlined.
      layers: (the Keras 3 layer, the name of the tf_keras one) of each with weights.
      inputs: the names of the inputs, in order.
      outputs: likewise.
    """

    model: Any
    layers: tuple[tuple[keras.Layer, str], ...]
    inputs: list[str]
    outputs: list[str]

    def place_of(self, variable: keras.Variable) -> tuple[str, str]:
        """The tf_keras layer that has a variable's counterpart, and its name there."""
        for layer, name in self.layers:
            for ours, theirs in zip(layer.weights, self.model.get_layer(name).weights, strict=True):
                if ours is variable:
                    return name, theirs.name
        raise ValueError(f"the variable {variable.path!r} is in none of the layers that were translated")

    def take_weights(self, trained: Any) -> None:
        """Gives the Keras 3 model the weights of a tf_keras model with the same layers."""
        for layer, name in self.layers:
            for target, source in zip(layer.weights, trained.get_layer(name).weights, strict=True):
                target.assign(source.numpy())


def to_tf_keras(model: keras.Model) -> Translation:
    """Rebuilds a functional or Sequential Keras 3 model in tf_keras, and compares the two on a random batch.

    Args:
      model: built, in float32; it stays as it is.

    Raises:
      ValueError: tf_keras has no counterpart of some layers or operators (all are named), or the model is subclassed.
      RuntimeError: the two compute different outputs.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> [layer.name for layer in to_tf_keras(model).model.layers][1:]
    ['head']
    """
    graph = flatten(model)
    made: dict[int, Any] = {}
    refused: dict[str, str] = {}
    for node in graph.nodes:
        if id(node.operation) not in made:
            try:
                made[id(node.operation)] = _counterpart(node)
            except (ValueError, TypeError) as error:
                refused[node.name] = str(error)
    if refused:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ValueError(
            f"{model.name!r} has layers without a counterpart in tf_keras, where TFMOT works: "
            f"{reasons}. Replace them, or use tfopt's own stages"
        )
    values: dict[Ref, Any] = {}
    for tensor, ref in zip(model.inputs, graph.inputs, strict=True):
        name = tensor._keras_history.operation.name
        values[ref] = tf_keras.Input(batch_shape=tuple(tensor.shape), dtype=str(tensor.dtype), name=name)
    inputs = [values[ref] for ref in graph.inputs]
    for node in graph.nodes:
        args, kwargs = keras.tree.map_structure(
            lambda each: values[each] if isinstance(each, Ref) else each, (node.args, dict(node.kwargs))
        )
        if not isinstance(node.operation, keras.Layer):
            args, kwargs = (list(args[:2]),) if node.type in _MERGES else args[:1], {}
        # Keras 3 notes the default of `training` with each call.
        given = {key: each for key, each in kwargs.items() if each is not None and key != "training"}
        result = made[id(node.operation)](*args, **given)
        flat = result if isinstance(result, list | tuple) else [result]
        values.update(zip(node.outputs, flat, strict=True))
    new = tf_keras.Model(inputs, [values[ref] for ref in graph.outputs], name=model.name)
    weighted = {id(node.operation): node.operation for node in graph.nodes if getattr(node.operation, "weights", None)}
    translation = Translation(
        new,
        tuple((layer, made[key].name) for key, layer in weighted.items()),
        [tensor._keras_history.operation.name for tensor in model.inputs],
        [],
    )
    for layer, name in translation.layers:
        _copy(layer, new.get_layer(name))
    for node in graph.nodes:
        if isinstance(node.operation, keras.Layer):
            made[id(node.operation)].trainable = node.operation.trainable
    return dataclasses.replace(translation, outputs=_compare(model, new))


def _counterpart(node: Node) -> Any:
    """A tf_keras layer that does what an operation does, under its name."""
    operation, kind = node.operation, node.type
    name = node.name.replace("/", "_")
    if not isinstance(operation, keras.Layer):
        if kind in _MERGES and len(node.inputs) == 2:
            return getattr(tf_keras.layers, kind)(name=name)
        require(kind in _ACTIVATIONS, f"tf_keras has no layer for the operator {kind}")
        return tf_keras.layers.ReLU(**_ACTIVATIONS[kind], name=name)
    theirs: Any = getattr(tf_keras.layers, kind, None)
    require(theirs is not None and type(operation).__module__.startswith("keras."), f"tf_keras has no layer {kind}")
    require(operation.compute_dtype == "float32", f"it computes in {operation.compute_dtype}, not in float32")
    config = {}
    for key, value in operation.get_config().items():
        key = _RENAMED.get(kind, {}).get(key, key)
        if key in _LEFT_OUT or key.endswith("_initializer"):
            continue
        if key not in arguments_of(theirs):
            usual = value in (None, False, _default(type(operation), key)) or (key, value) == (
                "data_format",
                "channels_last",
            )
            require(usual, f"tf_keras's {kind} has no {key}={value!r}")
            continue
        config[key] = _plain(value)
    return theirs(**config, name=name)


def _default(cls: type, key: str) -> Any:
    parameter = inspect.signature(cls).parameters.get(key)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _plain(value: Any) -> Any:
    """Regularizers and constraints as tf_keras reads them: without the place in Keras 3's modules."""
    if isinstance(value, Mapping) and "class_name" in value:
        require(
            str(value.get("module")).startswith("keras.") and value["class_name"] != "function",
            f"it has {value.get('registered_name') or value['config']!r}, which only Keras 3 knows",
        )
        return {"class_name": value["class_name"], "config": _plain(value["config"])}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value


def _copy(layer: keras.Layer, theirs: Any) -> None:
    shapes = [[tuple(each.shape) for each in weights] for weights in (layer.weights, theirs.weights)]
    require(
        shapes[0] == shapes[1],
        f"the layer {layer.name!r} ({type(layer).__name__}) has weights of shapes {shapes[0]}, in tf_keras {shapes[1]}",
    )
    theirs.set_weights([keras.ops.convert_to_numpy(each) for each in layer.weights])


def _compare(model: keras.Model, theirs: Any) -> list[str]:
    """The names of the outputs, which are equal in both models.

    Raises:
      RuntimeError: they are not.
    """
    batch = random_inputs(theirs)
    batch = batch if isinstance(batch, list) else [batch]
    named = call_named(model, [keras.ops.convert_to_tensor(np.asarray(each)) for each in batch])
    received = theirs(batch if len(batch) > 1 else batch[0], training=False)
    received = received if isinstance(received, list) else [received]
    for (name, ours), other in zip(named.items(), received, strict=True):
        off = relative_difference(ours, other)
        if not off <= _TOLERANCE:
            raise RuntimeError(
                f"{model.name!r} in tf_keras differs from Keras 3 by {off:.3g} of its output {name!r} (allowed: "
                f"{_TOLERANCE:g}): TFMOT would work on another model. Please report which layers it has: "
                f"{', '.join(sorted({type(layer).__name__ for layer in model.layers}))}"
            )
    return list(named)


def write(model: Any, path: pathlib.Path) -> None:
    """Writes a tf_keras model as an .h5 file: the format that TFMOT's models come back from whole."""
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5 file")
        model.save(path, include_optimizer=False)
