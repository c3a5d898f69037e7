"""One tf_keras layer as the Keras 3 layer of the same config."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfopt.load.safety import lookup

# Arguments of Keras 2 that Keras 3 does not have, and that change nothing in what a layer computes; whether
# it is trainable is set with the weights.
_IDLE = {
    "batch_input_shape", "input_length", "implementation", "fused", "query_shape", "key_shape", "value_shape",
    "build_input_shape", "rng_type", "force_generator", "trainable",
    "vocabulary_size", "has_input_vocabulary",
}  # fmt: skip
# What tf_keras writes for the kernel of a separable convolution and never uses: it has two kernels.
_IDLE_IN_SEPARABLE = {"kernel_initializer", "kernel_regularizer", "kernel_constraint"}
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}, "ThresholdedReLU": {"theta": "threshold"}}
_CLASSES = {"ThresholdedReLU": "ReLU", "SyncBatchNormalization": "BatchNormalization"}


@keras.saving.register_keras_serializable(package="tfopt")
def hard_sigmoid(x: Any) -> Any:
    """The hard sigmoid of Keras 2, clip(0.2 x + 0.5, 0, 1); that of Keras 3 has another slope, 1/6.

    >>> float(hard_sigmoid(1.0))
    0.699999988079071
    """
    return keras.ops.clip(keras.ops.add(keras.ops.multiply(x, 0.2), 0.5), 0.0, 1.0)


def convert_layer(
    layer: Any, new_name: str, custom_objects: Mapping[str, Any], convert: Callable[[Any], Any]
) -> keras.layers.Layer:
    """The Keras 3 layer, not built yet, with the config of a tf_keras layer.

    Args:
      layer: a tf_keras layer, or a model of a custom class.
      new_name: its name in Keras 3.
      custom_objects: name to Keras 3 class or function.
      convert: converts the layers that this one wraps.

    Raises:
      ValueError: when Keras 3 has no such layer, or not with these arguments; names the layer.
    """
    name = type(layer).__name__
    if name == "Lambda":
        return _convert_lambda(layer, new_name)
    if (custom := custom_class(layer, custom_objects)) is not None:
        config = {key: _plain(value) for key, value in layer.get_config().items() if key not in _IDLE}
        return custom.from_config({**config, "name": new_name, "dtype": layer.dtype_policy.name})
    cls = getattr(keras.layers, _CLASSES.get(name, name), None)
    if cls is None or not type(layer).__module__.startswith("tf_keras."):
        raise ValueError(
            f"the layer {layer.name!r} is a {name}, which Keras 3 does not have. Replace it in the code that "
            f"made the model, or pass a Keras 3 class: custom_objects={{{name!r}: ...}}"
        )
    config = _config(layer, name, cls, convert)
    config["name"] = new_name
    try:
        return cls(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Keras 3 cannot make the {name} {layer.name!r}: {error}. Its config: {config}") from error


def custom_class(layer: Any, custom_objects: Mapping[str, Any]) -> type[keras.layers.Layer] | None:
    """The Keras 3 class that the user gave for a tf_keras layer, or None."""
    name = getattr(layer, "keras3_name", type(layer).__name__)
    found = lookup({"class_name": name, "config": {}}, custom_objects)
    return found if isinstance(found, type) and issubclass(found, keras.layers.Layer) else None


def _config(layer: Any, name: str, cls: type, convert: Callable[[Any], Any]) -> dict[str, Any]:
    accepted = arguments_of(cls)
    config = {}
    for key, value in layer.get_config().items():
        key = _RENAMED.get(name, {}).get(key, key)
        if key in _IDLE or (name.startswith("Separable") and key in _IDLE_IN_SEPARABLE):
            continue
        if key not in accepted:
            if value in (None, False) or (key, value) == ("groups", 1):
                continue
            raise ValueError(
                f"the {name} {layer.name!r} has {key}={value!r}, which Keras 3 does not know. Make the model "
                f"without it, and save it again"
            )
        config[key] = _plain(value)
    for key in ("activation", "recurrent_activation"):
        if key in config:
            config[key] = _activation(getattr(layer, key), convert)
    for key in ("layer", "cell", "backward_layer"):
        if key in config:
            config[key] = convert(getattr(layer, key))
    if "cells" in config:
        config["cells"] = [convert(cell) for cell in layer.cells]
    if "axis" in config and "BatchNormalization" in name and isinstance(config["axis"], list):
        if len(config["axis"]) != 1:
            raise ValueError(f"the BatchNormalization {layer.name!r} has axes {config['axis']}; Keras 3 takes one")
        config["axis"] = config["axis"][0]
    if hasattr(layer, "get_vocabulary"):  # In the config only when it was given there, not when adapted.
        config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False)
    if name == "SyncBatchNormalization":
        config["synchronized"] = True
    config["dtype"] = layer.dtype_policy.name
    return config


def arguments_of(cls: type) -> set[str]:
    """The names that a class takes: its own, and those of its bases as long as it passes on **kwargs."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters
            names |= set(parameters)
            if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                break
    return names


def _plain(value: Any) -> Any:
    """Without the wrappers that tf_keras puts around lists and dicts, and without NumPy scalars."""
    if isinstance(value, Mapping):
        plain = {key: _plain(each) for key, each in value.items()}
        if str(plain.get("module")).startswith("tensorflow."):  # tf.constant_initializer and its like.
            plain["module"] = "keras.initializers"
        return plain
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) or getattr(value, "shape", None) == () else value


def _activation(function: Any, convert: Callable[[Any], Any]) -> Any:
    import tf_keras

    if isinstance(function, tf_keras.layers.Layer):
        return convert(function)
    name = getattr(function, "__name__", "")
    if function is tf_keras.activations.hard_sigmoid:
        return hard_sigmoid
    return getattr(keras.activations, name) if getattr(tf_keras.activations, name, None) is function else function


def _convert_lambda(layer: Any, new_name: str) -> keras.layers.Lambda:
    """The unmarshalled or given function itself: tf_keras has built it already, after the safety check."""
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=_plain(layer.arguments),
        name=new_name,
        dtype=layer.dtype_policy.name,
        trainable=layer.trainable,
    )
