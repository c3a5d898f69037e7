"""`prune_channels`: an ordinary, smaller model without the channels that matter least."""

from collections.abc import Mapping
from typing import Any

import keras

from tfopt.channels.measured import plan_pruning
from tfopt.channels.rebuild import apply_plan
from tfopt.channels.selection import Layers


def prune_channels(
    model: keras.Model,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    data: Any = None,
    criterion: str = "l1",
    layers: Layers = None,
    multiple: int = 8,
) -> keras.Model:
    """Takes whole channels out of a model: the filters that make them and all that reads them.

    Channels that meet, as in residual sums, go together (DepGraph). In each such group those go whose filters matter
    least; the others keep their weights and their order. What no rule knows is left whole, as are inputs and outputs;
    `plan_channels` tells what and why.

    Args:
      model: a built functional or Sequential model, channels last; stays as it is.
      ratio: the share of the channels that goes from every group, in [0, 1); 0 copies the model.
      target: instead of a ratio, the shares that may remain, in (0, 1], by "channels", "parameters" or "macs"
        (multiply-accumulates of one example): {"macs": 0.5}. The least ratio that gives it, the same for every group.
        Or by "bytes" or "latency", measured on int8 files, the latter on this machine.
      data: for "taylor": (x, y) as arrays, or a batched dataset of (x, y); all of it is used.
      criterion: what makes a filter matter, relative to the mean of its layer, and over the layers of a group. "l1" and
        "l2": the norm of its weights; "bn_gamma": |gamma| of the BatchNormalization layers that scale its channel;
        "taylor": |Σ w ∂L/∂w|, of the compiled loss, or the cross-entropy of a classifier that is not compiled.
      layers: names, or a predicate: only the groups of these lose channels. Or the ratio by name, instead of `ratio`.
      multiple: what is kept of a group is rounded up to a multiple of it, which kernels like; at least 1.

    Returns:
      A new model with the names, inputs and outputs of the old one, not compiled.

    Raises:
      ValueError: a ratio or target out of range, or a target that cannot be reached, with the nearest; an unknown
        criterion, or "taylor" without data or loss; a selection that makes outputs of the model; weights that are not
        finite; a subclassed model, or one from which nothing would go.

    Source: Li et al., 2017, arXiv:1608.08710; Fang et al., 2023, arXiv:2301.12900; Molchanov et al., 2019,
    arXiv:1906.10771.

    >>> layers = [keras.layers.Conv2D(16, 3), keras.layers.Flatten(), keras.layers.Dense(10)]
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    >>> small = prune_channels(model, ratio=0.5)
    >>> small.layers[0].filters, model.count_params(), small.count_params()
    (8, 6218, 3114)
    """
    plan = plan_pruning(model, ratio, target, layers, data=data, criterion=criterion, multiple=multiple)
    return apply_plan(model, plan)[0]
