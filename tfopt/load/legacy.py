"""Reads Keras 2 files with tf_keras, which stays apart from Keras 3."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
import tf_keras
from tf_keras.src.saving import serialization_lib

from tfopt.load.convert import convert_model
from tfopt.load.source import Source, deflated, named_as
from tfopt.load.verify import difference


def load_legacy(source: Source, custom_objects: Mapping[str, Any], safe_mode: bool) -> keras.Model:
    """A Keras 2 file as a Keras 3 model, verified against tf_keras on a random batch.

    Raises:
      ValueError: when the file cannot be read or has something that Keras 3 does not have.
      RuntimeError: when the outputs differ from those of tf_keras.
    """
    reference = read(source, custom_objects, safe_mode)
    with keras.saving.custom_object_scope(dict(custom_objects)):
        try:
            conversion = convert_model(reference, custom_objects)
            found = difference(reference, conversion)
            if found and any(getattr(old, "_keras_mask", None) is not None for _, old, _ in conversion.tensors):
                conversion = convert_model(reference, custom_objects, explicit_masks=True)
                found = difference(reference, conversion)
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from error
    if found:
        raise RuntimeError(f"{source.path}: {found}")
    return conversion.model


def read(source: Source, custom_objects: Mapping[str, Any], safe_mode: bool) -> tf_keras.Model:
    """The tf_keras model in a file; layers given as Keras 3 classes run inside adapters.

    A SavedModel has the computation of its custom layers itself: there the original runs.
    """
    objects = {
        name: adapter(name, each) if isinstance(each, type) and issubclass(each, keras.layers.Layer) else each
        for name, each in custom_objects.items()
    }
    if source.format == "saved_model":
        objects = {name: each for name, each in objects.items() if not isinstance(each, type)}
    scope = tf_keras.saving.custom_object_scope(objects)
    with named_as(source) as path, scope, serialization_lib.SafeModeScope(safe_mode):
        try:
            if source.format != "zip":
                return tf_keras.saving.load_model(path, compile=False)
            with deflated(path) as readable:
                return tf_keras.saving.load_model(readable, compile=False, safe_mode=safe_mode)
        except (OSError, IndexError, tf.errors.OpError) as error:
            raise ValueError(f"{source.path} is damaged or truncated: {error}. Save or copy it again") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{source.path}: tf_keras cannot load it: {error}") from error


def adapter(name: str, cls: type[keras.layers.Layer]) -> type[tf_keras.layers.Layer]:
    """A tf_keras layer class that holds a Keras 3 layer of class `cls`, with its weights."""

    class Adapter(tf_keras.layers.Layer):
        keras3_name = name

        def __init__(self, **config: Any):
            known = {
                key: config.pop(key) for key in ("name", "trainable", "dtype", "batch_input_shape") if key in config
            }
            super().__init__(**known)
            object.__setattr__(self, "_config3", config)
            object.__setattr__(self, "_layer3", cls.from_config({**config, "dtype": self.dtype_policy.name}))

        def build(self, input_shape: Any) -> None:
            self._layer3(tf.nest.map_structure(lambda shape: keras.Input(batch_shape=tuple(shape)), input_shape))
            self._trainable_weights += [weight.value for weight in self._layer3.trainable_weights]
            self._non_trainable_weights += [weight.value for weight in self._layer3.non_trainable_weights]
            super().build(input_shape)

        def call(self, *args: Any, **kwargs: Any) -> Any:
            return self._layer3(*args, **kwargs)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), **self._config3}

    Adapter.__name__ = Adapter.__qualname__ = name.split(">")[-1]
    return Adapter
