"""Which blocks and channels could go: for latency from a table of measured files, for size by sensitivity."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from tfopt.analyze.allocate import allocate, drop_at
from tfopt.analyze.result import Sensitivity
from tfopt.blocks.prune import prune_blocks
from tfopt.channels.plan import NothingPruned, plan_channels
from tfopt.channels.propagate import follow_channels
from tfopt.channels.prune import prune_channels

# By the first layer of each group that becomes narrower, how many channels stay.
Channels = Mapping[str, int]
# Of each group, by its first layer: how many channels could stay, what of the latency that saves, what it costs.
Table = Mapping[str, Sequence[tuple[int, float, float]]]
# Of each group, what is timed.
_TIMED = (0.25, 0.5, 0.75)
# Latencies that are aimed at, as shares; and shares of the parameters or multiplications.
_LATENCIES = tuple(np.arange(0.95, 0.34, -0.05).round(3).tolist())
_SHARES = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.12)
# Steps of the latency that are told apart.
_BINS = 200


def widths_by_share(model: keras.Model, found: Sensitivity, cost: str, notes: list[str]) -> list[Channels]:
    """Channels that leave shares of a cost, at about the least sum of the drops that each layer alone causes.

    Args:
      model: functional or Sequential.
      found: its sensitivity to "ratio".
      cost: "parameters" or "macs".
      notes: gets what cannot be reached.
    """
    multiple = multiple_of(model, found)
    widths: list[Channels] = []
    for share in _SHARES:
        try:
            ratios = allocate(model, found, {cost: share}, multiple)
            kept = plan_channels(model, layers=ratios, multiple=multiple).kept
        except NothingPruned:
            continue
        except ValueError as error:
            notes.append(f"fewer channels for less than {share:.0%} of the {cost}: {error}")
            break
        widths.append({name: len(kept[name]) for name in found.values if name in kept})
    return widths


def latency_table(model: keras.Model, found: Sensitivity, time: Callable[[Channels], float]) -> Table:
    """Narrows each group of layers alone and times it: kernels work in blocks, so that some channels save nothing.

    Args:
      model: functional or Sequential.
      found: its sensitivity to "ratio".
      time: gives the latency of the file with so many channels, as a share of the whole one's.

    Source: Yang et al., NetAdapt, 2018, arXiv:1804.03230, section 3.3 (tables of layers that add up).
    """
    multiple, now = multiple_of(model, found), counts(model)
    table: dict[str, list[tuple[int, float, float]]] = {}
    for name in found.values:
        rows = [(now[name], 0.0, 0.0)]
        for ratio in _TIMED:
            count = max(multiple, multiple * math.ceil((1 - ratio) * now[name] / multiple - 1e-9))
            if count < rows[-1][0]:
                saved = 1.0 - time({name: count})
                # What is timed worse than a wider one is noise.
                rows.append((count, max(saved, rows[-1][1]), drop_at(found, name, 1 - count / now[name])))
        table[name] = rows
    return table


def widths_by_latency(table: Table, latency: float = 1.0) -> list[Channels]:
    """Channels that save time where it costs the model least.

    What is saved adds up, nearly; of all combinations that save enough, the one with the least sum of squared drops is
    taken.

    Args:
      table: of the groups that the model has.
      latency: of the model, as a share of that of the one whose table it is: blocks may be gone from it.

    Source: Yang et al., NetAdapt, 2018, arXiv:1804.03230, section 3.3.

    >>> widths_by_latency({"a": [(16, 0.0, 0.0), (8, 0.3, 0.01)]})[-1]
    {'a': 8}
    """
    choices = [[(saved, drop**2) for _, saved, drop in rows] for rows in table.values()]
    widths: list[Channels] = []
    for share in _LATENCIES:
        picked = cheapest(choices, max(0.0, latency - share))
        if picked is None:
            break
        kept = {name: rows[index][0] for (name, rows), index in zip(table.items(), picked, strict=True) if index > 0}
        widths.append(kept)
    return widths


def cheapest(choices: Sequence[Sequence[tuple[float, float]]], least: float) -> list[int] | None:
    """Of each group the index of a choice, so that together they save enough at the least cost; None: they cannot.

    Args:
      choices: of each group, what each choice saves and what it costs, both at least 0; savings are taken in steps of
        1/200, rounded down.
      least: what must be saved, in [0, 1].

    >>> cheapest([[(0.0, 0.0), (0.1, 1.0)], [(0.0, 0.0), (0.1, 0.5), (0.2, 3.0)]], 0.2)
    [1, 1]
    """
    goal = math.ceil(least * _BINS - 1e-9)
    # By what is saved, up to the goal: the least cost, and the choices.
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for rows in choices:
        after: dict[int, tuple[float, list[int]]] = {}
        for (saved, (spent, picked)), (index, (more, cost)) in itertools.product(best.items(), enumerate(rows)):
            together = min(goal, saved + math.floor(more * _BINS + 1e-9))
            if together not in after or spent + cost < after[together][0]:
                after[together] = spent + cost, [*picked, index]
        best = after
    return best[goal][1] if goal in best else None


def strain(model: keras.Model, found: Sensitivity, channels: Channels) -> float:
    """What fewer channels cost a model before training: the root of the sum of the squared drops of single groups."""
    now = counts(model)
    drops = [drop_at(found, name, 1 - count / now[name]) for name, count in channels.items()]
    return math.sqrt(sum(drop**2 for drop in drops))


def multiple_of(model: keras.Model, found: Sensitivity) -> int:
    """What kept channels are multiples of: 8, which kernels like, or less where the narrowest group has no 16."""
    now = counts(model)
    narrowest = min(now[name] for name in found.values)
    return next(each for each in (8, 4, 2, 1) if each == 1 or each * 2 <= narrowest)


def narrowed(model: keras.Model, channels: Channels, blocks: Sequence[str] = ()) -> keras.Model:
    """The model without some of its blocks, and with so many channels of each group."""
    shorter = prune_blocks(model, blocks) if blocks else model
    return prune_channels(shorter, layers=ratios(shorter, channels), multiple=1) if channels else shorter


def present(model: keras.Model, found: Sensitivity) -> Sensitivity:
    """The sensitivity of those layers that the model still has."""
    names = {layer.name for layer in model._flatten_layers()}
    return dataclasses.replace(found, values={name: row for name, row in found.values.items() if name in names})


def ratios(model: keras.Model, channels: Channels) -> dict[str, float]:
    """The shares of the channels that go, so that so many stay of each group; of those that lose any."""
    now = counts(model)
    shares = {name: 1.0 - count / now[name] for name, count in channels.items()}
    return {name: share for name, share in shares.items() if share > 0}


def counts(model: keras.Model) -> dict[str, int]:
    """How many channels each layer makes."""
    return {producer.name: len(producer.ids) for producer in follow_channels(model).producers.values()}
