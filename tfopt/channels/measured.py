"""Targets that are measured on the exported file: its bytes, and its latency on this machine."""

import math
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfopt.channels.plan import ChannelPlan, plan_channels
from tfopt.channels.rebuild import apply_plan
from tfopt.channels.selection import Layers
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
    data: Any = None,
    criterion: str = "l1",
    layers: Layers = None,
    multiple: int = 8,
) -> ChannelPlan:
    """`plan_channels`, for targets that are measured too. The arguments and errors are those of `prune_channels`."""
    measured = set(target) & set(MEASURED) if isinstance(target, Mapping) else set()
    if target is None or not measured:
        return plan_channels(model, ratio, target, data, criterion, layers, multiple)
    others = sorted(set(target) - measured)
    require(not others, f"{', '.join(sorted(measured))} are measured: give them without {', '.join(others)}")
    for key, share in target.items():
        require(0 < share <= 1, f"the target of {key} must be in (0, 1], received {share!r}")
    require(
        ratio is None and not isinstance(layers, Mapping),
        "a target sets the ratio of every layer: give no ratio with it, and layers as a list of names",
    )

    def plan(share: float) -> ChannelPlan:
        return plan_channels(model, share, None, data, criterion, layers, multiple)

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

        def reached(found: Mapping[str, float]) -> bool:
            return all(share <= target[key] for key, share in found.items())

        low, high = 0.0, 1.0 - 2.0**-_STEPS
        nearest = shares(high)
        require(
            reached(nearest),
            f"the target {dict(target)} cannot be reached: the nearest measured is "
            f"{ {key: math.ceil(share * 1e4) / 1e4 for key, share in nearest.items()} }, with the channels that can go",
        )
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if reached(shares(middle)) else (middle, high)
    return plan(high)


def _pruned(model: keras.Model, plan: Callable[[float], ChannelPlan], ratio: float) -> keras.Model | None:
    """The smaller model; None where rounding to the multiple leaves it whole."""
    try:
        found = plan(ratio)
    except ValueError as error:
        if "nothing would be pruned" not in str(error):
            raise
        return None
    return apply_plan(model, found)[0]


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
