"""A Keras model seen as a function of named tensors, as a .tflite file is."""

import collections
import inspect
import keyword
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import require
from tfopt.tflite.examples import InputSpec
from tfopt.train.precision import computes_in, to_policy


def float32_model(model: keras.Model) -> keras.Model:
    """The model itself if it is built and computes in float32, else a copy that does.

    Raises:
      TypeError: it is no Keras 3 model.
      ValueError: it is not built, or is subclassed and computes in another precision.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"expected a Keras 3 model (keras.Model), received {type(model).__module__}."
            f"{type(model).__name__}. Models of tf_keras and files of Keras 2: load them with "
            "tfopt.load_model"
        )
    require(
        model.built and (not isinstance(model, keras.Sequential) or bool(getattr(model, "inputs", None))),
        f"the model {model.name!r} is not built: give a Sequential model a keras.Input as first layer, or "
        "call the model once on a batch of data",
    )
    return model if computes_in(model, "float32") else to_policy(model, "float32")


def input_specs(model: keras.Model) -> list[InputSpec]:
    """The model's inputs in order; of a subclassed model the one it was built for.

    Raises:
      ValueError: an input has a name that no signature can have, or a subclassed model has several inputs.
    """
    if getattr(model, "inputs", None):
        specs = [
            InputSpec(_layer_name(each), tuple(each.shape[1:]), keras.backend.standardize_dtype(each.dtype))
            for each in model.inputs
        ]
    else:
        shape = (model.get_build_config() or {}).get("input_shape")
        if not isinstance(shape, tuple | list) or not all(isinstance(n, int | None) for n in shape):
            raise ValueError(
                f"the subclassed model {model.name!r} ({type(model).__name__}) was built for {shape}; only "
                "subclassed models with a single tensor as input can be exported: build a functional model"
            )
        name = next(iter(inspect.signature(model.call).parameters))
        specs = [InputSpec(name, tuple(shape[1:]), keras.config.floatx())]
    for spec in specs:
        require(
            spec.name.isidentifier()
            and spec.name.isascii()
            and not keyword.iskeyword(spec.name)
            and not spec.name.startswith("_"),
            f"the input {spec.name!r} of {model.name!r} cannot be named so in a .tflite file: use letters, "
            "digits and underscores, a letter first, as in keras.Input(shape, name='image')",
        )
    return specs


def static_batch(model: keras.Model) -> int | None:
    """The batch size that the model's inputs are fixed to, None where it is open."""
    return model.inputs[0].shape[0] if getattr(model, "inputs", None) else None


def call_named(model: keras.Model, tensors: list[tf.Tensor]) -> dict[str, tf.Tensor]:
    """Calls the model for inference on its inputs in order; gives its outputs by name, in order.

    Names are the keys of a dict output, else those of the output layers (repeated ones get "_1", "_2", …).
    """
    structure = getattr(model, "input", None) if getattr(model, "inputs", None) else None
    is_nested = isinstance(structure, dict | list | tuple)
    inputs = keras.tree.pack_sequence_as(structure, tensors) if is_nested else tensors[0]
    outputs = model(inputs, training=False)
    if isinstance(outputs, dict):
        return {str(name): tensor for name, tensor in outputs.items()}
    return dict(zip(_output_names(model, outputs), keras.tree.flatten(outputs), strict=True))


def _output_names(model: keras.Model, outputs: Any) -> list[str]:
    if getattr(model, "outputs", None):
        given = [_layer_name(each) for each in model.outputs]
    else:
        given = [f"output_{i}" for i in range(len(keras.tree.flatten(outputs)))]
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for name in given:
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _layer_name(tensor: keras.KerasTensor) -> str:
    return tensor._keras_history.operation.name
