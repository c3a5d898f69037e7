"""Which channels go: from the ratios and targets that are asked for, and how much each channel matters."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfopt.channels.costs import Bill, Costs
from tfopt.channels.groups import Group, find_groups
from tfopt.channels.importance import by_class, scores
from tfopt.channels.propagate import Flow, follow_channels
from tfopt.channels.selection import Layers, ratios_of
from tfopt.channels.target import bisect, give_back, meets, nearest
from tfopt.config import Config, require, require_fraction

_COSTS = tuple(field.name for field in dataclasses.fields(Costs))
# Ratios are told apart to 2**-40.
_STEPS = 40


class NothingPruned(ValueError):
    """Ratios were given that rounding to the multiple leaves without effect."""


@dataclasses.dataclass(frozen=True, repr=False)
class ChannelPlan(Config):
    """Which channels of a model stay.

    Args:
      kept: by the name of each layer that loses channels, the indices of those that stay, ascending.
      groups: the names of layers whose channels stay or go together, whether any go or not.
      skipped: by the name of each layer left whole, why.
      before: the costs of the model.
      after: the costs of what stays.
    """

    kept: Mapping[str, tuple[int, ...]]
    groups: tuple[tuple[str, ...], ...]
    skipped: Mapping[str, str]
    before: Costs
    after: Costs


@dataclasses.dataclass(frozen=True, eq=False)
class _Ranked:
    """A group with its own ratio, None for that of the model, and its labels, those that matter least first."""

    group: Group
    ratio: float | None
    labels: np.ndarray

    def lost(self, ratio: float, multiple: int) -> np.ndarray:
        """The labels that go, where the model's ratio is `ratio`."""
        own = ratio if self.ratio is None else self.ratio
        return self.labels[: len(self.labels) - kept_count(len(self.labels), own, multiple, self.group.width)]


def plan_channels(
    model: keras.Model,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    data: Any = None,
    criterion: str = "l1",
    layers: Layers = None,
    multiple: int = 8,
) -> ChannelPlan:
    """Decides which channels of a model go. The arguments and errors are those of `prune_channels`.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="hidden"), keras.layers.Dense(2)])
    >>> model.get_layer("hidden").set_weights([np.outer([1, 1, 1], [4.0, 1.0, 3.0, 2.0]), np.zeros(4)])
    >>> plan = plan_channels(model, ratio=0.5, multiple=1)
    >>> plan.kept, plan.after
    ({'hidden': (0, 2)}, Costs(channels=4, parameters=14, macs=10))
    """
    _check(model, ratio, target, layers, multiple)
    flow = follow_channels(model)
    classes = flow.ties.classes()
    groups, skipped = find_groups(flow, classes)
    skipped = {**flow.unknown, **skipped}
    require(bool(groups), _nothing(model, skipped))
    selected = ratios_of(model, layers, flow, groups, classes)
    importance = by_class(scores(model, flow, criterion, data), classes.labels)
    ranked = _rank(groups, selected, importance, skipped)
    require(bool(ranked), _nothing(model, skipped))

    def lost_at(uniform: float) -> list[np.ndarray]:
        return [each.lost(uniform, multiple) for each in ranked]

    bill = flow.bill(model)
    uniform, lost = ratio or 0.0, lost_at(ratio or 0.0)
    if target is not None:
        uniform, lost = _lost(target, bill, classes.labels, lost_at)
    keep = ~np.isin(classes.labels, np.concatenate(lost))
    asked = False
    for each in ranked:
        share = uniform if each.ratio is None else each.ratio
        asked |= share > 0
        if share and not len(each.lost(uniform, multiple)):
            reason = f"a ratio of {share:.3g} of its {len(each.labels)} channels, with multiple={multiple}, is none"
            skipped.update({producer.name: reason for producer in each.group.producers})
    kept = _kept(flow, keep)
    if asked and not kept:
        raise NothingPruned(
            f"nothing would be pruned from {model.name!r}: kept channels are rounded up to a multiple of {multiple}, "
            "which is all that each group has; pass a higher ratio, or multiple=1"
        )
    return ChannelPlan(
        kept,
        tuple(tuple(producer.name for producer in group.producers) for group in groups),
        {name: reason for name, reason in skipped.items() if name not in kept},
        bill.costs(np.ones_like(keep)),
        bill.costs(keep),
    )


def kept_count(count: int, ratio: float, multiple: int, width: int = 1) -> int:
    """How many of `count` classes stay, where each has `width` channels of a layer.

    What remains at the ratio is rounded up to a multiple, to all there are at most; at least one stays.

    >>> kept_count(64, 0.7, 8), kept_count(6, 0.5, 8), kept_count(6, 0.5, 1), kept_count(16, 0.9, 8, width=4)
    (24, 6, 3, 2)
    """
    # Without the small number, 0.1 of 10 would be none.
    remaining = max(1, count - math.floor(ratio * count + 1e-9))
    step = multiple // math.gcd(multiple, width)
    return min(count, -(-remaining // step) * step)


def _rank(
    groups: Sequence[Group],
    selected: Sequence[tuple[Group, float | None]],
    importance: np.ndarray,
    skipped: dict[str, str],
) -> list[_Ranked]:
    """The groups that are pruned; of the others, `skipped` gets the reason."""
    ratios = {id(group): own for group, own in selected}
    ranked = []
    for group in groups:
        values = importance[group.labels]
        reason = None
        if id(group) not in ratios:
            reason = "layers does not select it"
        elif np.any(np.isnan(values)):
            reason = "no BatchNormalization with a gamma scales its channels"
        else:
            ranked.append(_Ranked(group, ratios[id(group)], group.labels[np.argsort(values, kind="stable")]))
        if reason:
            skipped.update({producer.name: reason for producer in group.producers})
    return ranked


def _lost(
    target: Mapping[str, float], bill: Bill, labels: np.ndarray, lost: Callable[[float], list[np.ndarray]]
) -> tuple[float, list[np.ndarray]]:
    """The least ratio that reaches a target, and what then goes of each group."""

    def shares(parts: Sequence[np.ndarray]) -> dict[str, float]:
        after = bill.costs(~np.isin(labels, np.concatenate(parts)))
        return {key: getattr(after, key) / getattr(whole, key) for key in target}

    whole = bill.costs(np.ones(labels.shape, bool))
    require(
        whole.macs is not None or "macs" not in target,
        "the multiplications are not known, since the model leaves a size of its input open: build it for a fixed one, "
        "or give the target in parameters or channels",
    )
    highest = float(np.nextafter(1.0, 0.0))
    least = shares(lost(highest))
    require(
        meets(least, target),
        f"the target {dict(target)} cannot be reached: the nearest is {nearest(least)}, with the channels that can go",
    )
    if meets(shares(lost(0.0)), target):
        return 0.0, lost(0.0)
    low, high = bisect(lambda ratio: meets(shares(lost(ratio)), target), 0.0, highest, _STEPS)
    return high, give_back(lost(low), lost(high), shares, target)


def _kept(flow: Flow, keep: np.ndarray) -> dict[str, tuple[int, ...]]:
    """By name, what stays of the layers that lose channels."""
    return {
        producer.name: tuple(np.flatnonzero(keep[producer.ids]).tolist())
        for producer in flow.producers.values()
        if not np.all(keep[producer.ids])
    }


def _nothing(model: keras.Model, skipped: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
    return f"in {model.name!r} no channel can be pruned. {reasons or 'It has no convolution or dense layer'}"


def _check(model: keras.Model, ratio: Any, target: Any, layers: Layers, multiple: Any) -> None:
    """Raises where the arguments contradict themselves or the weights are not finite."""
    by_layer = isinstance(layers, Mapping)
    if (ratio is not None) + (target is not None) + by_layer != 1:
        raise ValueError(
            "give one of ratio, target, or layers with a ratio for each name: received "
            f"ratio={ratio!r}, target={target!r}, layers={layers!r}"
        )
    if ratio is not None:
        require_fraction("ratio", ratio)
    for name, own in layers.items() if isinstance(layers, Mapping) else ():
        require_fraction(f"the ratio of {name!r}", own)
    if target is not None:
        require(
            isinstance(target, Mapping) and bool(target) and target.keys() <= set(_COSTS),
            f"target must be a mapping with keys among {', '.join(_COSTS)}, or measured ones (bytes, latency) in "
            f"prune_channels, as {{'macs': 0.5}}: received {target!r}",
        )
        for name, share in target.items():
            require_fraction(f"target[{name!r}]", share, one=True)
            require(share > 0, f"target[{name!r}] is the share that may remain and must be more than 0, received 0")
    whole = isinstance(multiple, int) and not isinstance(multiple, bool) and multiple >= 1
    require(whole, f"multiple must be a whole number of at least 1, received {multiple!r}")
    for variable in model.weights:
        values = keras.ops.convert_to_numpy(variable)
        is_float = "float" in keras.backend.standardize_dtype(variable.dtype)
        require(not is_float or bool(np.all(np.isfinite(values))), f"the weights {variable.path!r} are not all finite")
