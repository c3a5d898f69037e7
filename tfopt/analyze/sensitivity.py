"""`sensitivity`: changes one layer at a time and evaluates the model."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.analyze.result import LEVELS, Kind, Sensitivity
from tfopt.blocks.find import find_blocks
from tfopt.blocks.prune import named_blocks, prune_blocks
from tfopt.channels.plan import plan_channels
from tfopt.channels.prune import prune_channels
from tfopt.config import require, require_fraction
from tfopt.data import Data, as_data
from tfopt.data.pipeline import Pipeline
from tfopt.graph import deep_graphs
from tfopt.kernels import select_kernels
from tfopt.progress import current_bar
from tfopt.prune.magnitude import magnitude_mask
from tfopt.quantize.convolve import channel_axes
from tfopt.quantize.integers import to_integers, weight_scales
from tfopt.train.statistics import has_own_statistics, recalibrate
from tfopt.train.task import task_of
from tfopt.variables import LayerSelection, owned_variables, select_layers

_Variant = tuple[str, float, Callable[[], keras.Model]]


@deep_graphs()
def sensitivity(
    model: keras.Model,
    data: Any,
    kind: Kind = "sparsity",
    levels: Sequence[float] | None = None,
    layers: LayerSelection = None,
    examples: int = 1000,
) -> Sensitivity:
    """Measures what each layer alone costs when it is pruned, narrowed or rounded, without training.

    Args:
      model: a trained Keras model; it stays as it is.
      data: what it was trained for; examples of the validation split are used.
      kind: "sparsity": the smallest weights of each kernel become zero. "ratio": channels are removed, of a functional
        or Sequential model, and the statistics of BatchNormalization measured anew, on training examples. "bits":
        weights are rounded to integers, a scale for each channel. "blocks": a residual block is taken out, see
        `find_blocks`, and statistics are measured anew.
      levels: what is tried on each layer: fractions in [0, 1), or bits of 2 to 8; None: (0.5, 0.7, 0.8, 0.9),
        (0.125, 0.25, 0.5, 0.75) and (8, 4). A block goes whole.
      layers: names of layers, or a predicate over layers; None: all that can be changed. Of "blocks" the names of sums.
      examples: how many the model is evaluated on at most, at least 1. The noise of an accuracy is about
        sqrt(accuracy * (1 - accuracy) / examples).

    Raises:
      ValueError: for values out of range, and where no layer can be changed.

    Source: Li et al., Pruning Filters for Efficient ConvNets, 2017, arXiv:1608.08710, section 3.2; Li et al., EagleEye,
    2020, arXiv:2007.02491, section 3.3 (statistics).

    >>> x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2, "softmax")])
    >>> sensitivity(net, (x, (x[:, 0] > 0).astype(int)), levels=[0.5]).kind
    'sparsity'
    """
    require(kind in LEVELS, f"kind must be one of {', '.join(LEVELS)}; received {kind!r}")
    levels = sorted(LEVELS[kind] if levels is None else levels)
    require(bool(levels), "levels is empty: give at least one")
    for level in levels:
        if kind == "bits":
            require(
                level == int(level) and 2 <= level <= 8, f"bits must be whole numbers from 2 to 8, received {level!r}"
            )
        elif kind == "blocks":
            require(level == 1, f"a block goes whole: leave levels out, received {level!r}")
        else:
            require_fraction(f"a level of {kind}", level)
    require(examples >= 1, f"examples must be at least 1, received {examples!r}")
    known = as_data(data)
    task = task_of(model, known)
    # In memory, as it is read for each variant.
    (taken,) = known.batches("validation").unbatch().take(examples).batch(examples)
    batches = tf.data.Dataset.from_tensor_slices(taken).batch(known.batch_size)
    if kind == "ratio":
        variants = list(_narrowed(model, known, examples, levels, layers))
    elif kind == "blocks":
        variants = list(_shortened(model, known, examples, layers))
    else:
        variants = list(_rewritten(model, kind, levels, layers))

    def measure(candidate: keras.Model) -> tuple[str, float]:
        if not candidate.compiled:
            task.compile(candidate, jit_compile=False)
        found = candidate.evaluate(batches, verbose=0, return_dict=True)
        name = "accuracy" if "accuracy" in found else "loss"
        return name, float(found[name])

    metric, baseline = measure(_altered(keras.models.clone_model(model), model.get_weights(), {}))
    values: dict[str, dict[float, float]] = {}
    bar = current_bar(len(variants))
    for number, (name, level, make) in enumerate(variants, 1):
        values.setdefault(name, {})[level] = measure(make())[1]
        bar.update(number)
    return Sensitivity(kind, metric, baseline, values)


def _rewritten(model: keras.Model, kind: Kind, levels: Sequence[float], layers: LayerSelection) -> Iterator[_Variant]:
    """Variants of the same shapes: other values in the kernels of one layer."""
    weights, judge = model.get_weights(), keras.models.clone_model(model)
    kernels = {id(each) for each in select_kernels(model, layers, "pruned" if kind == "sparsity" else "rounded")[0]}
    places = {id(each): place for place, each in enumerate(model.weights)}
    # By name, as `layers` selects them: a recurrent layer has two kernels.
    by_name: dict[str, dict[int, keras.Layer]] = {}
    for layer, variable in owned_variables(model):
        if id(variable) in kernels:
            by_name.setdefault(layer.name, {})[places[id(variable)]] = layer
    for name, owners in by_name.items():
        for level in levels:
            if kind == "sparsity":
                changes = {place: functools.partial(_pruned, sparsity=level) for place in owners}
            else:
                changes = {
                    place: functools.partial(_rounded, owner, bits=int(level)) for place, owner in owners.items()
                }
            yield name, level, functools.partial(_altered, judge, weights, changes)


def _altered(
    judge: keras.Model, weights: Sequence[np.ndarray], changes: Mapping[int, Callable[[np.ndarray], np.ndarray]]
) -> keras.Model:
    """The model with these weights, some of them changed, by their places."""
    judge.set_weights([changes[place](each) if place in changes else each for place, each in enumerate(weights)])
    return judge


def _pruned(value: np.ndarray, sparsity: float) -> np.ndarray:
    return value * keras.ops.convert_to_numpy(magnitude_mask(value, sparsity))


def _rounded(layer: keras.layers.Layer, value: np.ndarray, bits: int) -> np.ndarray:
    channels = {axis % value.ndim for axis in channel_axes(layer)}
    scales = weight_scales(value, [axis for axis in range(value.ndim) if axis not in channels], bits)
    return to_integers(value, scales, bits) * scales


def _narrowed(
    model: keras.Model, data: Data, examples: int, levels: Sequence[float], layers: LayerSelection
) -> Iterator[_Variant]:
    """Variants with fewer channels in one group of layers, known by its first layer."""
    groups = plan_channels(model, ratio=0.0).groups
    chosen = {each.name for each in select_layers(model, layers)}
    seen = _first_of_training(data, examples) if has_own_statistics(model) else None

    def narrow(name: str, level: float) -> keras.Model:
        return _with_new_statistics(prune_channels(model, layers={name: level}, multiple=1), seen)

    for names in groups:
        name = next((each for each in names if each in chosen), None)
        if name is None:
            continue
        for level in levels:
            yield name, level, functools.partial(narrow, name, level)


def _shortened(model: keras.Model, data: Data, examples: int, layers: LayerSelection) -> Iterator[_Variant]:
    """Variants without one residual block, known by its sum."""
    known = [each.name for each in find_blocks(model)]
    require(bool(known), f"{model.name!r} has no residual blocks that can be taken out: measure another kind")
    names = known if layers is None else list(named_blocks(model, layers))
    seen = _first_of_training(data, examples) if has_own_statistics(model) else None

    def shorten(name: str) -> keras.Model:
        return _with_new_statistics(prune_blocks(model, [name]), seen)

    for name in names:
        yield name, 1.0, functools.partial(shorten, name)


def _with_new_statistics(smaller: keras.Model, seen: Data | None) -> keras.Model:
    """With those of the whole model, what is left computes nonsense, and every layer seems to cost as much."""
    if seen is not None and has_own_statistics(smaller):
        recalibrate(smaller, seen)
    return smaller


def _first_of_training(data: Data, examples: int) -> Data:
    """The same data with a few of its training examples, in memory: they are read for each variant."""
    (taken,) = data.training_batches(augmented=False).unbatch().take(examples).batch(examples)
    few = {**data.splits, "train": tf.data.Dataset.from_tensor_slices(taken)}
    return dataclasses.replace(data, splits=few, augment=(), transform=None, read=None, pipeline=Pipeline())
