"""Which variables of a model can be pruned, and why the others are not."""

from collections.abc import Mapping

import keras

from tfopt.config import require_fraction
from tfopt.patterns import Pattern
from tfopt.variables import LayerSelection, all_layers, owned_variables, select_layers

# Layers, or the final sparsity by the name of a layer.
Targets = LayerSelection | Mapping[str, float]

_KERNELS = ("kernel", "pointwise_kernel", "recurrent_kernel", "embeddings")
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def prunable_variables(
    model: keras.Model, layers: LayerSelection = None
) -> tuple[list[keras.Variable], list[dict[str, str]]]:
    """The kernels to prune, and each layer with weights that is left out, with the reason.

    Without a selection: kernels, pointwise and recurrent kernels and embeddings of trainable layers. Depthwise
    kernels are left out, as in TFMOT: they are few and each counts. In layers that are selected, every trainable
    variable of two or more dimensions is pruned, biases excepted.

    Args:
      model: a built Keras model of any kind.
      layers: names, or a predicate over layers; None: every prunable layer.

    Raises:
      ValueError: nothing can be pruned, or a name does not exist; the message lists the reasons.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")], name="net")
    >>> [variable.path for variable in prunable_variables(model)[0]]
    ['net/head/kernel']
    """
    if not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built, so it has no weights to prune: add keras.Input(shape) as its "
            "first layer, call model.build(input_shape), or call it once on a batch"
        )
    chosen = {id(layer) for layer in select_layers(model, layers)}
    targets: list[keras.Variable] = []
    reasons: dict[str, str] = {}
    pruned: set[str] = set()
    for layer, variable in owned_variables(model):
        reason = _reason(layer, variable, id(layer) in chosen, by_name=layers is not None)
        if reason is None:
            targets.append(variable)
            pruned.add(layer.name)
        else:
            reasons.setdefault(layer.name, reason)
    skipped = [{"layer": name, "reason": why} for name, why in reasons.items() if name not in pruned]
    if not targets:
        said = "; ".join(f"{each['layer']}: {each['reason']}" for each in skipped) or (
            f"its {len(all_layers(model))} layers have no weights"
        )
        raise ValueError(
            f"the model {model.name!r} has no layer that can be pruned ({said}). Make a layer with a kernel "
            "trainable, or select layers by name"
        )
    return targets, skipped


def find_targets(
    model: keras.Model, layers: Targets, pattern: Pattern
) -> tuple[list[keras.Variable], list[float | None], list[dict[str, str]]]:
    """The kernels to prune, the final sparsity of each where `layers` gives one, and the layers left out.

    Raises:
      ValueError: nothing can be pruned, a name does not exist, a sparsity is outside [0, 1), or the pattern's groups
        are larger than a kernel.
    """
    if isinstance(layers, Mapping):
        for name, sparsity in layers.items():
            require_fraction(f"the sparsity of {name!r}", sparsity)
    variables, skipped = prunable_variables(model, list(layers) if isinstance(layers, Mapping) else layers)
    finals: list[float | None] = [None] * len(variables)
    if isinstance(layers, Mapping):
        for name, sparsity in layers.items():
            chosen = {id(each) for each in prunable_variables(model, [name])[0]}
            finals = [sparsity if id(each) in chosen else old for each, old in zip(variables, finals, strict=True)]
    for variable in variables:
        pattern.require_fits(tuple(variable.shape), variable.path)
    return variables, finals, skipped


def _reason(layer: keras.Layer, variable: keras.Variable, chosen: bool, by_name: bool) -> str | None:
    if not chosen:
        return "not selected"
    if not variable.trainable or not layer.trainable:
        return "not trainable"
    if len(variable.shape) < 2:
        return "has no kernel of two or more dimensions"
    if variable.name == "bias":
        return "a bias is not pruned"
    if by_name:
        return None
    if isinstance(layer, _DEPTHWISE) or variable.name == "depthwise_kernel":
        return "depthwise kernels are few and sensitive; select the layer by name to prune it"
    if variable.name not in _KERNELS:
        return f"{variable.name} is not a kernel; select the layer by name to prune it"
    return None
