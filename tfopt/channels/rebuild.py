"""The smaller model: the same layers with smaller settings, and the weights that stay."""

import keras
import numpy as np

from tfopt.channels.plan import ChannelPlan
from tfopt.channels.propagate import Flow, follow_channels
from tfopt.config import require
from tfopt.copies import ModelCopier, copy_trainable, from_config
from tfopt.graph import deep_graphs

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
    copy_trainable(copier)
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


class _Copier(ModelCopier):
    """Makes layers with smaller settings."""

    def __init__(self, flow: Flow, keep: np.ndarray) -> None:
        super().__init__()
        self._flow, self._keep = flow, keep

    def operation(self, operation: keras.Operation) -> keras.Operation:
        """A copy with the channels that stay."""
        edits = self._flow.edits.get(id(operation), {})
        if not edits:
            return super().operation(operation)
        config = dict(operation.get_config())
        for key, change in edits.items():
            config[key] = change(config[key], self._keep)
        return from_config(operation, config)
