"""`allocate`: how much each layer gives up, so that the whole reaches a cost and loses little."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from tfopt.analyze.result import Sensitivity
from tfopt.channels.plan import NothingPruned, plan_channels
from tfopt.channels.target import bisect, give_back, meets, nearest
from tfopt.config import require

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


def levels_for(target: Mapping[str, float]) -> Sequence[float]:
    """The ratios to measure so that a target can be reached.

    >>> levels_for({"macs": 0.5})
    (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
    """
    return (
        (0.125, 0.25, 0.375, 0.5, 0.625, 0.75) if min(target.values()) > 0.2 else (0.25, 0.5, 0.625, 0.75, 0.825, 0.9)
    )
