"""Targets that are measured on the exported file: its bytes, and its latency on this machine."""

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfopt.channels.plan import ChannelPlan, NothingPruned, plan_channels
from tfopt.channels.rebuild import apply_plan
from tfopt.channels.selection import Layers
from tfopt.channels.target import bisect, meets, nearest
from tfopt.config import require
from tfopt.measure.latency import measure_latencies
from tfopt.tflite.export import export_tflite
from tfopt.tflite.model import input_specs

# Shares of what the int8 file of the whole model has.
MEASURED = ("bytes", "latency")
_STEPS = 7


def plan_pruning(
    model: keras.Model,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    layers: Layers = None,
    **options: Any,
) -> ChannelPlan:
    """`plan_channels`, for targets that are measured too. The arguments and errors are those of `prune_channels`."""
    measured = set(target) & set(MEASURED) if isinstance(target, Mapping) else set()
    if target is None or not measured:
        return plan_channels(model, ratio, target, layers=layers, **options)
    others = sorted(set(target) - measured)
    require(not others, f"{', '.join(sorted(measured))} are measured: give them without {', '.join(others)}")
    for key, share in target.items():
        require(0 < share <= 1, f"the target of {key} must be in (0, 1], received {share!r}")
    require(
        ratio is None and not isinstance(layers, Mapping),
        "a target sets the ratio of every layer: give no ratio with it, and layers as a list of names",
    )

    def plan(share: float) -> ChannelPlan:
        return plan_channels(model, share, layers=layers, **options)

    return plan_measured(model, target, plan)


def plan_measured(model: keras.Model, target: Mapping[str, float], plan: Callable[[float], ChannelPlan]) -> ChannelPlan:
    """The plan of the least ratio, to 1/128, whose int8 file has no more than the target's share.

    Latency is the median of each file's runs, those of the whole model and of the smaller one in turns, on one thread.

    Args:
      model: to prune.
      target: "bytes", "latency": the share that may remain, in (0, 1].
      plan: what goes at a ratio.

    Raises:
      ValueError: the target cannot be reached, with the nearest that can; or the model leaves a size of its input open.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, part = pathlib.Path(folder, "whole.tflite"), pathlib.Path(folder, "part.tflite")
        size = _export(model, whole)

        def shares(ratio: float) -> dict[str, float]:
            smaller = _pruned(model, plan, ratio)
            if smaller is None:
                return dict.fromkeys(target, 1.0)
            now = _export(smaller, part)
            found = {"bytes": now / size}
            if "latency" in target:
                before, after = measure_latencies([whole, part])
                found["latency"] = after.median_ms / before.median_ms
            return {key: found[key] for key in target}

        highest = 1.0 - 2.0**-_STEPS
        least = shares(highest)
        require(
            meets(least, target),
            f"the target {dict(target)} cannot be reached: the nearest measured is {nearest(least)}, with the channels "
            "that can go",
        )
        _, ratio = bisect(lambda each: meets(shares(each), target), 0.0, highest, _STEPS)
    return plan(ratio)


def _pruned(model: keras.Model, plan: Callable[[float], ChannelPlan], ratio: float) -> keras.Model | None:
    """The smaller model; None where rounding to the multiple leaves it whole."""
    try:
        return apply_plan(model, plan(ratio))[0]
    except NothingPruned:
        return None


def _export(model: keras.Model, path: pathlib.Path) -> int:
    """Writes the int8 file, calibrated on noise, which changes neither size nor speed; its bytes."""
    rng, inputs = np.random.default_rng(0), {}
    for spec in input_specs(model):
        require(
            None not in spec.shape,
            f"the input {spec.name!r} has an open size, {spec.shape}, so that no latency is known: build the model for "
            "a fixed one, or give the target in parameters",
        )
        inputs[spec.name] = rng.normal(size=(8, *(size or 1 for size in spec.shape))).astype(spec.dtype)
    data = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    return export_tflite(model, path, "int8", data).bytes
