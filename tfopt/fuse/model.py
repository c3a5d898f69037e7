"""`fuse_layers`: a model with fewer layers that gives the same outputs, checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfopt.clusters import Clustered
from tfopt.config import require
from tfopt.copies import ModelCopier, copy_layer, copy_trainable, from_config
from tfopt.fuse.find import Step, find, kernel_of, outputs_of
from tfopt.fuse.maths import affine, chain, scale_inputs, scale_outputs
from tfopt.graph import deep_graphs, flatten, functional
from tfopt.invariants import Invariant
from tfopt.quantize.frozen import is_quantized

# Of the largest output: what float32 leaves of the order in which numbers are multiplied.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Fused:
    """A model with fewer layers, and how it came about.

    Args:
      model: an ordinary Keras model; compiled as the old one was, with a new optimizer.
      fused: by the name of a layer that is gone, that of the layer that took it up.
      skipped: each BatchNormalization and each linear pair that stays, with the reason.
      difference: the largest one of an output, as a fraction of the largest output.
    """

    model: keras.Model
    fused: Mapping[str, str]
    skipped: Sequence[Mapping[str, str]]
    difference: float


def fuse_layers(model: keras.Model, data: Any = None, keep: Sequence[Invariant] = ()) -> Fused:
    """Fuses each BatchNormalization with the layer before or behind it, and linear layers that follow each other.

    A BatchNormalization goes into a convolution, transposed, depthwise or separable one, or a dense layer before it; or
    else into one behind it that pads with nothing. Two dense layers without an activation between them,
    or two convolutions one of which is 1 x 1, become one where that has no more weights. The statistics are those that
    the model predicts with, so fuse what is trained. Then both models are run, and must agree.

    Args:
      model: built, functional or Sequential; nested models and shared layers are fine. Stays as it is.
      data: inputs to compare the outputs on, as the model takes them; None: random numbers of a normal distribution,
        whole ones that every embedding knows.
      keep: promises about weights. Zeros stay zeros when channels are scaled; the product of two layers is not made
        where one is under a promise.

    Returns:
      The new model, and what was fused and what was not.

    Raises:
      ValueError: nothing can be fused, with the reasons; a quantized model, or one that computes in 16 bits; clusters
        are promised for weights of which each channel would get a factor of its own.
      RuntimeError: the outputs differ by more than 1e-4 of the largest one.

    Source: Jacob et al., 2018, arXiv:1712.05877, section 3.2.

    >>> conv, norm = (
    ...     keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
    ...     keras.layers.BatchNormalization(name="norm"),
    ... )
    >>> found = fuse_layers(keras.Sequential([keras.Input((8, 8, 3)), conv, norm, keras.layers.ReLU(name="relu")]))
    >>> found.fused, [layer.name for layer in found.model.layers], found.difference < 1e-5
    ({'norm': 'conv'}, ['conv', 'relu'], True)
    """
    found = rewrite(model, keep)
    difference = compare(model, found.model, data)
    return dataclasses.replace(found, difference=difference)


@deep_graphs()
def rewrite(model: keras.Model, keep: Sequence[Invariant] = ()) -> Fused:
    """As `fuse_layers`, without a look at what the models compute."""
    require(
        not is_quantized(model),
        f"{model.name!r} is quantization-aware: its layers are fused already, and its ranges are those of the layers "
        "it has. Fuse before QuantizeAware",
    )
    halves = sorted({layer.compute_dtype for layer in model._flatten_layers()} & {"float16", "bfloat16"})
    require(
        not halves,
        f"{model.name!r} computes in {', '.join(halves)}, in which fused weights are others: take "
        'tfopt.train.precision.to_policy(model, "float32") first',
    )
    kept = [path for promise in keep for path in getattr(promise, "targets", ())]
    clusters = {path for promise in keep if isinstance(promise, Clustered) for path in promise.targets}
    now, fused = model, {}
    while True:
        steps, reasons = find(flatten(now), kept)
        if not steps:
            break
        for step in steps:
            _keep_clusters(step, clusters)
            fused[step.gone.name] = step.into.name
        now = _apply(now, steps)
    said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    require(
        bool(fused),
        f"nothing in {model.name!r} can be fused ({said or 'it has no BatchNormalization and no linear pair'}): leave "
        "this out",
    )
    if model.compiled:
        now.compile_from_config(model.get_compile_config())
    return Fused(now, fused, [{"layer": name, "reason": reason} for name, reason in reasons.items()], 0.0)


def compare(model: keras.Model, fused: keras.Model, data: Any = None) -> float:
    """The largest difference of two models' outputs, as a fraction of the largest output.

    Raises:
      RuntimeError: it is above `TOLERANCE`, or not finite.
    """
    x = _examples(model) if data is None else data
    outputs = [keras.tree.flatten(each(x, training=False)) for each in (model, fused)]
    worst = 0.0
    for old, new in zip(*outputs, strict=True):
        old, new = (keras.ops.convert_to_numpy(each).astype("float64") for each in (old, new))
        if old.size:
            largest = max(float(np.abs(old).max()), 1e-6)
            worst = np.maximum(worst, np.abs(old - new).max() / largest)
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"the fused {model.name!r} differs by {worst:.3g} of the largest output, allowed are {TOLERANCE:g}: its "
            "statistics or weights are extreme, or not finite. Look for a variance near 0, or recalibrate "
            "(tfopt.train.recalibrate); the model was left as it is"
        )
    return float(worst)


def _keep_clusters(step: Step, clusters: set[str]) -> None:
    both = sorted({each.path for each in step.into.variables} & clusters)
    require(
        not both,
        f"{', '.join(both)} has clusters, and {step.gone.name!r} would give each of its channels a factor of its own, "
        "and so more values: put Fuse before Cluster",
    )


def _examples(model: Any) -> Any:
    rng = np.random.default_rng(0)
    sizes = [each.input_dim for each in model._flatten_layers() if isinstance(each, layers.Embedding)]

    def make(tensor: keras.KerasTensor) -> np.ndarray:
        free = 32 if len(tensor.shape) == 4 else 8
        shape = [size or (free if axis else 4) for axis, size in enumerate(tensor.shape)]
        if sizes or not keras.backend.is_float_dtype(tensor.dtype):
            return rng.integers(0, min(sizes, default=2), shape).astype(tensor.dtype)
        return rng.normal(size=shape).astype(tensor.dtype)

    # Of a model that is not called yet there is no `input`.
    return keras.tree.map_structure(make, functional(model, model.name)._inputs_struct)


class _Copier(ModelCopier):
    """Leaves out what is gone, and makes room for the weights of what takes it up."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self._gone = {id(step.gone) for step in steps}
        self._steps = {id(step.into): step for step in steps}

    def operation(self, operation: keras.Operation) -> keras.Operation:
        """A copy, with a bias where it takes something up."""
        step = self._steps.get(id(operation))
        if step is None:
            return super().operation(operation)
        config = {**step.into.get_config(), "use_bias": True}
        if step.kind == "chain" and not isinstance(step.into, layers.Dense):
            # What is around the channels is that of the one that is not 1 x 1; the other one has a stride of 1.
            window = step.gone if max(step.into.kernel_size) == 1 else step.into
            config |= {key: getattr(window, key) for key in ("kernel_size", "strides", "padding", "dilation_rate")}
        return from_config(step.into, config)

    def call(self, operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        """What is gone hands on what it is given."""
        if id(operation) in self._gone:
            return keras.tree.flatten((args, kwargs))[0]
        return super().call(operation, *args, **kwargs)

    def sequence(self, layer: keras.layers.Layer, tensor: Any) -> Sequence[keras.layers.Layer]:
        """Nothing in place of what is gone."""
        return [] if id(layer) in self._gone else super().sequence(layer, tensor)


def _apply(model: keras.Model, steps: Sequence[Step]) -> keras.Model:
    copier = _Copier(steps)
    copy = copier.copy(model)
    into = {id(step.into): step for step in steps}
    for old, new in copier.pairs():
        if isinstance(old, keras.Model):
            continue
        step = into.get(id(old))
        if step is None:
            copy_layer(old, new)
        else:
            _set_fused(step, new)
    copy_trainable(copier)
    return copy


def _set_fused(step: Step, new: Any) -> None:
    """Gives the copy of the layer that takes another one up its weights."""
    gone, old = step.gone, step.into
    kernel, bias = _numpy(kernel_of(old)), _numpy(old.bias)
    if step.kind == "chain":
        fused = chain(_numpy(gone.kernel), _numpy(gone.bias), kernel, bias)
    else:
        scale, shift = affine(
            _numpy(gone.moving_mean), _numpy(gone.moving_variance), gone.epsilon, _numpy(gone.gamma), _numpy(gone.beta)
        )
        change = scale_outputs if step.kind == "after" else scale_inputs
        fused = change(kernel, bias, scale, shift, outputs_of(old))
    for variable in old.variables:
        copied = next(each for each in new.variables if each.name == variable.name)
        if copied.shape == variable.shape:
            copied.assign(variable)
        copied._path = variable.path
    for variable, value in zip((kernel_of(new), new.bias), fused, strict=True):
        variable.assign(value.astype("float32"))
    new.bias._path = kernel_of(old).path.rpartition("/")[0] + "/bias"


def _numpy(variable: Any) -> Any:
    return None if variable is None else keras.ops.convert_to_numpy(variable)
