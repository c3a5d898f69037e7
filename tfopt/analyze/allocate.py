"""How much each layer gives up, so that the whole reaches a cost and loses little: channels, or zeros."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from tfopt.analyze.result import Sensitivity
from tfopt.channels.plan import NothingPruned, plan_channels
from tfopt.channels.target import bisect, give_back, meets, nearest
from tfopt.config import require, require_fraction
from tfopt.kernels import select_kernels

_STEPS = 40


def allocate(
    model: keras.Model,
    found: Sensitivity,
    target: Mapping[str, float],
    multiple: int = 8,
    **options: Any,
) -> dict[str, float]:
    """Ratios of channels to remove, by layer, that reach a target at about the least sum of what each alone costs.

    Each layer gives up what is worth its drop at one price for what is saved; that price is found by bisection. So a
    layer that matters may become narrow where much is saved by it, and one that hardly does may stay wide.

    Args:
      model: a functional or Sequential model.
      found: its sensitivity to "ratio".
      target: the shares that may remain, in (0, 1], by "channels", "parameters" or "macs".
      multiple: kept channels are rounded up to a multiple of it.
      options: further arguments of `plan_channels`.

    Returns:
      By layer, the ratio: what `prune_channels` takes as `layers`.

    Raises:
      ValueError: `found` is of another kind, or the target cannot be reached with the levels that were measured; with
        the nearest that can.

    Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers, 1988 (one price for all).
    """
    require(found.kind == "ratio", f'the sensitivity must be to "ratio", received one to {found.kind!r}')
    layers = list(found.values)

    @functools.cache
    def shares_at(ratios: tuple[float, ...]) -> Mapping[str, float]:
        chosen = {layer: ratio for layer, ratio in zip(layers, ratios, strict=True) if ratio > 0}
        try:
            plan = plan_channels(model, layers=chosen, multiple=multiple, **options) if chosen else None
        except NothingPruned:
            plan = None
        if plan is None:
            return dict.fromkeys(target, 1.0)
        return {key: getattr(plan.after, key) / getattr(plan.before, key) for key in target}

    def shares_of(values: Sequence[float]) -> Mapping[str, float]:
        return shares_at(tuple(values))

    def saved(layer: str, ratio: float) -> float:
        return sum(1.0 - share for share in shares_at(tuple(ratio * (each == layer) for each in layers)).values())

    steps = [_steps(found, layer, saved) for layer in layers]

    def ratios(price: float) -> list[float]:
        return [min(row, key=lambda step: (step.drop - price * step.saved, step.ratio)).ratio for row in steps]

    # Above this, nothing that saves is too dear.
    gains = [after.saved - before.saved for row in steps for before, after in itertools.pairwise(row)]
    drop = max(step.drop for row in steps for step in row)
    highest = (drop + 1.0) / min((gain for gain in gains if gain > 0), default=1.0)
    least = shares_of(ratios(highest))
    require(
        meets(least, target),
        f"the target {dict(target)} cannot be reached with ratios up to "
        f"{max(level for row in found.values.values() for level in row)}: the nearest is {nearest(least)}. Measure the "
        "sensitivity at higher levels, or give a ratio",
    )
    low, high = bisect(lambda price: meets(shares_of(ratios(price)), target), 0.0, highest, _STEPS)
    chosen = give_back(ratios(low), ratios(high), shares_of, target)
    return {layer: ratio for layer, ratio in zip(layers, chosen, strict=True) if ratio > 0}


class _Step(NamedTuple):
    """What one layer can give up; `saved` is the sum over the costs of the target."""

    ratio: float
    drop: float
    saved: float


def _steps(found: Sensitivity, layer: str, saved: Callable[[str, float], float]) -> list[_Step]:
    """What a layer can do, from nothing on."""
    steps = [_Step(0.0, 0.0, 0.0)]
    for level in sorted(found.values[layer]):
        # A level that loses less than a weaker one is noise: the loss so far counts.
        drop = max(steps[-1].drop, found.drop(layer, level))
        steps.append(_Step(level, drop, saved(layer, level)))
    return steps


def allocate_zeros(model: keras.Model, found: Sensitivity, share: float) -> dict[str, float]:
    """Fractions of zeros, by layer, that make up a share of all prunable weights at the least drop of one layer alone.

    Args:
      model: with the layers that were measured, which may have become narrower since.
      found: the sensitivity to "sparsity".
      share: the fraction of zeros over all these layers, in [0, 1).

    Returns:
      By layer, the fraction of zeros: what `Prune` and `PruningCallback` take as `layers`.

    Raises:
      ValueError: `found` is of another kind, or the share is more than the levels that were measured.
    """
    require(found.kind == "sparsity", f'the sensitivity must be to "sparsity", received one to {found.kind!r}')
    require_fraction("share", share)
    sizes = {layer: sum(math.prod(each.shape) for each in select_kernels(model, [layer])[0]) for layer in found.values}
    drops = [found.drop(layer, level) for layer, row in found.values.items() for level in row]

    def zeros(drop: float) -> float:
        weighted = (size * _bearable(found, layer, drop) for layer, size in sizes.items())
        return sum(weighted) / sum(sizes.values())

    highest = max(0.0, *drops)
    require(
        zeros(highest) >= share,
        f"a share of {share:g} is more than the highest levels that were measured, {zeros(highest):.3f} in all: "
        "measure the sensitivity at higher levels",
    )
    _, drop = bisect(lambda each: zeros(each) >= share, min(0.0, *drops), highest, _STEPS)
    # All give back alike what is beyond the share.
    factor = share / zeros(drop) if share else 0.0
    chosen = {layer: round(factor * _bearable(found, layer, drop), 4) for layer in sizes}
    return {layer: fraction for layer, fraction in chosen.items() if fraction > 0}


def _bearable(found: Sensitivity, layer: str, drop: float) -> float:
    """The ratio up to which a layer loses no more than `drop`, between the levels in a straight line."""
    before, lost = 0.0, 0.0
    for level in sorted(found.values[layer]):
        # A level that loses less than a weaker one is noise: the loss so far counts.
        now = max(lost, found.drop(layer, level))
        if now > drop:
            return before + (level - before) * _share(drop - lost, now - lost)
        before, lost = level, now
    return before


def drop_at(found: Sensitivity, layer: str, level: float) -> float:
    """The drop of a layer alone at any level, between the measured ones in a straight line, at least 0.

    >>> drop_at(Sensitivity("ratio", "accuracy", 0.9, {"a": {0.5: 0.8}}), "a", 0.25)
    0.05
    """
    before, lost = 0.0, 0.0
    for measured in sorted(found.values[layer]):
        now = max(lost, found.drop(layer, measured))
        if level <= measured:
            return round(lost + (now - lost) * (level - before) / (measured - before), 12)
        before, lost = measured, now
    return lost


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 1.0


def levels_for(target: Mapping[str, float]) -> Sequence[float]:
    """The ratios to measure so that a target can be reached.

    >>> levels_for({"macs": 0.5})
    (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
    """
    return (
        (0.125, 0.25, 0.375, 0.5, 0.625, 0.75) if min(target.values()) > 0.2 else (0.25, 0.5, 0.625, 0.75, 0.825, 0.9)
    )
