"""A tf_keras model rebuilt in Keras 3: the same graph, layer by layer, with the same weights."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tfopt.load.layers import convert_layer, custom_class
from tfopt.load.masks import mask_arguments, output_mask
from tfopt.load.ops import apply_op


def convert_model(model: Any, custom_objects: Mapping[str, Any], explicit_masks: bool = False) -> "Conversion":
    """Rebuilds a tf_keras model in Keras 3, with its weights.

    Args:
      model: the tf_keras model; it stays as it is.
      custom_objects: name to Keras 3 class or function.
      explicit_masks: whether to pass masks as arguments instead of leaving them to Keras 3.

    Raises:
      ValueError: when Keras 3 has no counterpart of a layer or operation; names it.
    """
    conversion = Conversion(custom_objects, explicit_masks)
    conversion.model = conversion.convert(model)
    conversion.copy_weights()
    return conversion


@dataclasses.dataclass
class Conversion:
    """A Keras 3 model under construction, and what belongs to what in the tf_keras one.

    `layers` maps the id of a tf_keras layer to (it, the Keras 3 layer), the innermost first; shared layers
    stay shared. `tensors` lists (layer name, tf_keras tensor, Keras 3 tensor) of the outermost functional
    model in the order of computation.
    """

    custom_objects: Mapping[str, Any]
    explicit_masks: bool
    model: Any = None
    layers: dict[int, tuple[Any, keras.layers.Layer]] = dataclasses.field(default_factory=dict)
    tensors: list[tuple[str, Any, Any]] = dataclasses.field(default_factory=list)

    def convert(self, layer: Any, name: str | None = None) -> keras.layers.Layer:
        """The Keras 3 counterpart of a tf_keras layer or model, made once, under a name Keras 3 takes."""
        if id(layer) not in self.layers:
            name = name or clean_name(layer.name)
            if not isinstance(layer, tf_keras.Model) or custom_class(layer, self.custom_objects):
                new = convert_layer(layer, name, self.custom_objects, self.convert)
            elif isinstance(layer, tf_keras.Sequential):
                new = self._sequential(layer, name)
            elif getattr(layer, "_is_graph_network", False):
                new = self._functional(layer, name)
            else:
                kind = type(layer).__name__
                raise ValueError(
                    f"the model {layer.name!r} is a subclassed {kind}, which has no layer graph. Pass the "
                    f"class, written for Keras 3: custom_objects={{{kind!r}: {kind}}}"
                )
            if isinstance(layer, tf_keras.layers.Bidirectional):
                for side in ("forward_layer", "backward_layer"):
                    self.layers[id(getattr(layer, side))] = (getattr(layer, side), getattr(new, side))
            self.layers[id(layer)] = (layer, new)
        return self.layers[id(layer)][1]

    def _sequential(self, model: Any, name: str) -> keras.Sequential:
        if not model.inputs:
            raise ValueError(
                f"the Sequential model {model.name!r} was saved without an input shape: call it once on "
                "data, or give its first layer an input shape, and save it again"
            )
        layers = [each for each in model.layers if not isinstance(each, tf_keras.layers.InputLayer)]
        names = unique_names([model.input_names[0], *(each.name for each in layers)])
        new = keras.Sequential([_input(model.inputs[0], names[0])], name=name)
        for layer, layer_name in zip(layers, names[1:], strict=True):
            new.add(self.convert(layer, layer_name))
        return new

    def _functional(self, model: Any, name: str) -> keras.Model:
        nodes = [node for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True) for node in nodes]
        layers = list({id(node.layer): node.layer for node in nodes}.values())
        keys = _input_keys(model)
        names = dict(zip(map(id, layers), unique_names(keys.get(id(each), each.name) for each in layers), strict=True))
        taken = {names[id(each)] for each in layers if not _is_op(each)}
        values: dict[int, Any] = {}
        masks: dict[int, Any] = {}
        tensors = []
        for node in nodes:
            result = self._call(node, names[id(node.layer)], values, masks, taken)
            before = tf.nest.flatten(node.outputs)
            after = keras.tree.flatten(result) if _is_symbolic(result) else [result]
            for old, new in zip(before, after, strict=True):
                values[id(old)] = new
                if isinstance(new, keras.KerasTensor):
                    tensors.append((node.layer.name, old, new))
                    if self.explicit_masks and getattr(old, "_keras_mask", None) is not None:
                        inputs = [values[id(each)] for each in node.keras_inputs]
                        masks[id(new)] = output_mask(node.layer, inputs, [masks.get(id(each)) for each in inputs])
        self.tensors = tensors
        inputs, outputs = _replace((model._nested_inputs, model._nested_outputs), values)
        return keras.Model(inputs, outputs, name=name)

    def _call(self, node: Any, name: str, values: Mapping[int, Any], masks: Mapping[int, Any], taken: set[str]) -> Any:
        layer = node.layer
        if node.is_input:
            return _input(node.outputs, name)
        args, kwargs = _replace((node.call_args, node.call_kwargs), values)
        if _is_op(layer):
            try:
                result = apply_op(layer.symbol, args, kwargs)
            except ValueError as error:
                raise ValueError(
                    f"the layer {layer.name!r} cannot be expressed in keras.ops: {error}. Replace it in the "
                    "code that made the model by a layer or another operation, and save it again"
                ) from error
            _name_operations(result, (args, kwargs), name, taken)
            return result
        if isinstance(layer, (tf_keras.layers.RNN, tf_keras.layers.Bidirectional)) and isinstance(args[0], list):
            states = args[0][1:]
            args, kwargs = (args[0][0], *args[1:]), {**kwargs, "initial_state": states}
        new = self.convert(layer, name)
        if any(id(values[id(each)]) in masks for each in node.keras_inputs):
            kwargs |= mask_arguments(new, args, kwargs, masks)
        return new(*args, **kwargs)

    def copy_weights(self) -> None:
        """Gives every converted layer the weights and the trainable flag of its original.

        Raises:
          ValueError: when a layer has other weights in Keras 3; names the layer.
        """
        for old, new in reversed(self.layers.values()):
            new.trainable = old.trainable
        copied: set[int] = set()
        for old, new in self.layers.values():
            # A TextVectorization lists its table among its weights; its words are in the config already.
            sources = [each for each in old.weights if hasattr(each, "shape") and id(each) not in copied]
            targets = [
                weight for weight in new.trainable_weights + new.non_trainable_weights if id(weight) not in copied
            ]
            if [tuple(each.shape) for each in sources] != [tuple(each.shape) for each in targets]:
                raise ValueError(
                    f"the layer {old.name!r} ({type(old).__name__}) has weights of the shapes "
                    f"{[tuple(each.shape) for each in sources]} in the file, but "
                    f"{[tuple(each.shape) for each in targets]} in Keras 3"
                )
            for source, target in zip(sources, targets, strict=True):
                target.assign(source.numpy())
            copied.update(map(id, [*sources, *targets]))
            if hasattr(new, "finalize_state"):
                new.finalize_state()


def clean_name(name: str) -> str:
    """The name without "/", which Keras 3 refuses."""
    return name.replace("/", "_")


def unique_names(names: Iterable[str]) -> list[str]:
    """The names without "/", kept apart from each other; a name that has none stays as it is.

    >>> unique_names(["a/b", "a_b", "c"])
    ['a_b_1', 'a_b', 'c']
    """
    names = list(names)
    taken = {name for name in names if clean_name(name) == name}
    return [name if clean_name(name) == name else _free(clean_name(name), taken) for name in names]


def _free(name: str, taken: set[str]) -> str:
    """The name, or the name with the first number that makes it new; adds it to `taken`."""
    candidates = (f"{name}_{count}" if count else name for count in range(len(taken) + 1))
    free = next(each for each in candidates if each not in taken)
    taken.add(free)
    return free


def _name_operations(result: Any, given: Any, name: str, taken: set[str]) -> None:
    """Names the operations between `given` and `result`: Keras' own names could be those of layers."""
    known = {id(tensor) for tensor in keras.tree.flatten(given)}
    waiting = [tensor for tensor in keras.tree.flatten(result) if isinstance(tensor, keras.KerasTensor)]
    while waiting:
        tensor = waiting.pop(0)
        if id(tensor) in known:
            continue
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        history.operation.name = _free(name, taken)
        known.update(id(each) for each in node.output_tensors)
        waiting += node.input_tensors


def _input_keys(model: Any) -> dict[int, str]:
    """The keys of a dict of inputs by input layer: Keras 3 wants the inputs to have those names."""
    inputs = model._nested_inputs
    pairs = inputs.items() if isinstance(inputs, Mapping) else ()
    return {id(tensor._keras_history.layer): key for key, tensor in pairs}


def _is_op(layer: Any) -> bool:
    return hasattr(layer, "symbol")


def _is_symbolic(value: Any) -> bool:
    return any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(value))


def _input(tensor: Any, name: str) -> keras.KerasTensor:
    tensor = tf.nest.flatten(tensor)[0]
    if isinstance(tensor.type_spec, tf.RaggedTensorSpec):
        raise ValueError(f"the input {name!r} is ragged, which Keras 3 does not know. Pad it, and save it again")
    sparse = isinstance(tensor.type_spec, tf.SparseTensorSpec)
    return keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype.name, name=name, sparse=sparse)


def _replace(value: Any, values: Mapping[int, Any]) -> Any:
    """The same structure with tf_keras tensors replaced by their counterparts, constants by NumPy arrays."""
    if id(value) in values:
        return values[id(value)]
    if isinstance(value, Mapping):
        return {key: _replace(each, values) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_replace(each, values) for each in value)
    if isinstance(value, list):
        return [_replace(each, values) for each in value]
    return value.numpy() if isinstance(value, (tf.Tensor, tf.Variable)) else value
