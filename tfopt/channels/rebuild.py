"""The smaller model: the same layers with smaller settings, and the weights that stay."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfopt.channels.plan import ChannelPlan
from tfopt.channels.propagate import Flow, follow_channels
from tfopt.config import require
from tfopt.graph import deep_graphs, functional

# By the path of each old variable: the path of the new one, and by axis the indices that stay, None for all.
Kept = dict[str, tuple[str, tuple[np.ndarray | None, ...]]]


@deep_graphs()
def apply_plan(model: keras.Model, plan: ChannelPlan) -> tuple[keras.Model, Kept]:
    """The model without the channels that a plan takes away.

    Args:
      model: the one that the plan was made for, or one with the same layers; stays as it is.
      plan: from `plan_channels`.

    Returns:
      A new model, not compiled; and by the path of each old variable, the path of the new one with what stays of
      it: for each axis an array of indices, or None where all stays. Of several variables with one path, as in nested
      models whose layers have the same names, it tells the last.

    Raises:
      ValueError: the plan is for another model.

    >>> from tfopt.channels.plan import plan_channels
    >>> inputs = keras.Input((3,))
    >>> outputs = keras.layers.Dense(2)(keras.layers.Dense(4, name="hidden")(inputs))
    >>> model = keras.Model(inputs, outputs)
    >>> small, kept = apply_plan(model, plan_channels(model, ratio=0.5, multiple=1))
    >>> small.get_layer("hidden").units, kept["hidden/bias"][1][0].shape
    (2, (2,))
    """
    flow = follow_channels(model)
    keep = _mask(model, flow, plan)
    copier = _Copier(flow, keep)
    small = copier.copy(model)
    kept: Kept = {}
    for old, new in copier.pairs():
        if isinstance(old, keras.Model):
            continue
        for variable, copied in zip(old.variables, new.variables, strict=True):
            axes: list[np.ndarray | None] = []
            values = keras.ops.convert_to_numpy(variable)
            for axis in range(values.ndim):
                ids = flow.slices.get((id(variable), axis))
                stays = None if ids is None or np.all(keep[ids]) else np.flatnonzero(keep[ids])
                values = values if stays is None else np.take(values, stays, axis)
                axes.append(stays)
            copied.assign(values)
            kept[variable.path] = copied.path, tuple(axes)
        if isinstance(new, keras.layers.Normalization):
            # It computes from constants that it makes of its variables.
            new.finalize_state()
    _copy_trainable(copier)
    return small, kept


def _mask(model: keras.Model, flow: Flow, plan: ChannelPlan) -> np.ndarray:
    """The ids that stay: those of the plan, and of every layer that it names exactly those."""
    producers = {producer.name: producer for producer in flow.producers.values()}
    unknown = sorted(plan.kept.keys() - producers.keys())
    require(not unknown, f"the plan is for another model: {model.name!r} has no layer {', '.join(map(repr, unknown))}")
    classes = flow.ties.classes()
    lost = np.zeros(flow.ties.count, bool)
    for name, indices in plan.kept.items():
        ids = producers[name].ids
        lost[classes.labels[ids[~np.isin(np.arange(len(ids)), indices)]]] = True
    keep = ~lost[classes.labels]
    whole = not any(lost[label] for label in classes.frozen)
    same = all(
        np.array_equal(np.flatnonzero(keep[each.ids]), plan.kept.get(name, np.arange(len(each.ids))))
        for name, each in producers.items()
    )
    require(whole and same, f"the plan is for another model: in {model.name!r} other channels belong together")
    return keep


class _Copier:
    """Copies operations, each once, so that shared ones stay shared."""

    def __init__(self, flow: Flow, keep: np.ndarray) -> None:
        self._flow, self._keep = flow, keep
        self._copies: dict[int, tuple[keras.Operation, Any]] = {}

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
                copied = self._operation(operation)
            self._copies[id(operation)] = operation, copied
        return self._copies[id(operation)][1]

    def _operation(self, operation: keras.Operation) -> keras.Operation:
        edits = self._flow.edits.get(id(operation), {})
        if not edits and not isinstance(operation, keras.layers.Layer):
            # Raw operators have no weights, and some no configuration, by which even `copy.copy` would copy them.
            copied = object.__new__(type(operation))
            vars(copied).update({**vars(operation), "_inbound_nodes": [], "_outbound_nodes": []})
            return copied
        config = dict(operation.get_config())
        for key, change in edits.items():
            config[key] = change(config[key], self._keep)
        if isinstance(operation, keras.layers.Lambda):
            # The function is the caller's own, and in memory already.
            return type(operation).from_config(config, safe_mode=False)
        return type(operation).from_config(config)

    def _model(self, model: Any, given: Sequence[keras.KerasTensor]) -> keras.Model:
        """As `keras.models.clone_model`, which knows no other input shapes and compiles what was compiled."""
        inner = functional(model, model.name)
        old = inner._inputs
        inputs = [_input_like(*each) for each in zip(old, given or old, strict=True)]
        if isinstance(model, keras.Sequential):
            copied, tensor = keras.Sequential(inputs, name=model.name), inputs[0].output
            for layer in model.layers:
                copied.add(self.copy(layer, tensor))
                tensor = copied.outputs[0]
            return copied
        tensors = keras.tree.pack_sequence_as(model._inputs_struct, [each.output for each in inputs])
        outputs = model._run_through_graph(tensors, operation_fn=lambda operation: operation, call_fn=self._call)
        return keras.Model(tensors, outputs, name=model.name)

    def _call(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        return self.copy(operation, (args, kwargs))(*args, **kwargs)


def _input_like(tensor: keras.KerasTensor, given: keras.KerasTensor) -> keras.layers.InputLayer:
    """A copy of the layer behind an input, with as many channels as the tensor that comes in."""
    config = tensor._keras_history.operation.get_config()
    shape = (*tensor.shape[:-1], given.shape[-1]) if tensor.shape else tensor.shape
    return keras.layers.InputLayer.from_config({**config, "batch_shape": shape})


def _copy_trainable(copier: _Copier) -> None:
    """What is frozen stays frozen; a layer's flag is also its inner layers', so these come last."""
    for old, new in copier.pairs():
        new.trainable = old.trainable
    for old, new in copier.pairs():
        for variable, copied in zip(old.variables, new.variables, strict=True):
            if variable.trainable != copied.trainable:
                copied.trainable = variable.trainable
