"""`ModelCopier`: a copy of a model in which some operations are made, or called, otherwise."""

from collections.abc import Sequence
from typing import Any

import keras

from tfopt.graph import functional


class ModelCopier:
    """Copies operations, each once, so that shared ones stay shared; nested and Sequential models stay what they are.

    A subclass says what differs: `operation` makes the copies, `call` calls them, `sequence` is what takes a layer's
    place in a Sequential model.
    """

    def __init__(self) -> None:
        self._copies: dict[int, tuple[keras.Operation, Any]] = {}

    def operation(self, operation: keras.Operation) -> keras.Operation:
        """The copy of a layer or a raw operator; of none that has been copied before."""
        if not isinstance(operation, keras.layers.Layer):
            # Raw operators have no weights, and some no configuration, by which even `copy.copy` would copy them.
            copied = object.__new__(type(operation))
            vars(copied).update({**vars(operation), "_inbound_nodes": [], "_outbound_nodes": []})
            return copied
        return from_config(operation, operation.get_config())

    def call(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """What a call of an operation becomes, given the copies of its arguments."""
        return self.copy(operation, (args, kwargs))(*args, **kwargs)

    def sequence(self, layer: keras.layers.Layer, tensor: Any) -> Sequence[keras.layers.Layer]:
        """The layers that take the place of one in a Sequential model, given the copy of its input."""
        return [self.copy(layer, tensor)]

    def copied(self, operation: keras.Operation) -> Any:
        """The copy that was made of an operation; None where there is none."""
        return self._copies.get(id(operation), (operation, None))[1]

    def pairs(self) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
        """Each layer or model with its copy; models first, the outer before the inner."""
        found = [pair for pair in self._copies.values() if isinstance(pair[0], keras.layers.Layer)]
        return sorted(found, key=lambda pair: not isinstance(pair[0], keras.Model))

    def copy(self, operation: Any, given: Any = ()) -> Any:
        """The copy of a layer, a raw operator, or a whole model, which is built for the tensors `given`."""
        if id(operation) not in self._copies:
            # Its place is before those of what is inside it.
            self._copies[id(operation)] = operation, None
            if isinstance(operation, keras.Model):
                tensors = [each for each in keras.tree.flatten(given) if isinstance(each, keras.KerasTensor)]
                copied = self._model(operation, tensors)
            else:
                copied = self.operation(operation)
            self._copies[id(operation)] = operation, copied
        return self._copies[id(operation)][1]

    def _model(self, model: Any, given: Sequence[keras.KerasTensor]) -> keras.Model:
        """As `keras.models.clone_model`, which knows no other input shapes and compiles what was compiled."""
        inner = functional(model, model.name)
        old = inner._inputs
        inputs = [_input_like(*each) for each in zip(old, given or old, strict=True)]
        if isinstance(model, keras.Sequential):
            copied, tensor = keras.Sequential(inputs, name=model.name), inputs[0].output
            for layer in model.layers:
                for each in self.sequence(layer, tensor):
                    copied.add(each)
                    tensor = copied.outputs[0]
            if not copied.layers:
                copied.add(keras.layers.Identity())
            return copied
        tensors = keras.tree.pack_sequence_as(model._inputs_struct, [each.output for each in inputs])
        outputs = model._run_through_graph(tensors, operation_fn=lambda operation: operation, call_fn=self.call)
        return keras.Model(tensors, outputs, name=model.name)


def from_config(layer: keras.layers.Layer, config: dict[str, Any]) -> keras.layers.Layer:
    """A layer of the same class from a configuration."""
    if isinstance(layer, keras.layers.Lambda):
        # The function is the caller's own, and in memory already.
        return type(layer).from_config(config, safe_mode=False)
    return type(layer).from_config(config)


def copy_layer(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Gives a copy with the same settings the variables, and their paths."""
    for variable, copied in zip(old.variables, new.variables, strict=True):
        copied.assign(variable)
        copied._path = variable.path
    if isinstance(new, keras.layers.Normalization):
        # It computes from constants that it makes of its variables.
        new.finalize_state()


def copy_trainable(copier: ModelCopier) -> None:
    """What is frozen stays frozen; a layer's flag is also its inner layers', so these come last."""
    for old, new in copier.pairs():
        new.trainable = old.trainable
    for old, new in copier.pairs():
        by_name = {variable.name: variable for variable in new.variables}
        same = len(old.variables) == len(new.variables)
        for index, variable in enumerate(old.variables):
            copied = new.variables[index] if same else by_name.get(variable.name)
            if copied is not None and variable.trainable != copied.trainable:
                copied.trainable = variable.trainable


def _input_like(tensor: keras.KerasTensor, given: keras.KerasTensor) -> keras.layers.InputLayer:
    """A copy of the layer behind an input, with as many channels as the tensor that comes in."""
    config = tensor._keras_history.operation.get_config()
    shape = (*tensor.shape[:-1], given.shape[-1]) if tensor.shape else tensor.shape
    return keras.layers.InputLayer.from_config({**config, "batch_shape": shape})
