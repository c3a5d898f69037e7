"""Which variables of a model are its kernels, to be pruned or clustered, and why the others are not."""

import keras

from tfopt.variables import LayerSelection, all_layers, owned_variables, select_layers

_KERNELS = ("kernel", "pointwise_kernel", "recurrent_kernel", "embeddings")
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def select_kernels(
    model: keras.Model, layers: LayerSelection = None, purpose: str = "pruned"
) -> tuple[list[keras.Variable], list[dict[str, str]]]:
    """The kernels to prune or cluster, and each layer with weights that is left out, with the reason.

    Without a selection: kernels, pointwise and recurrent kernels and embeddings of trainable layers. Depthwise
    kernels are left out, as in TFMOT: they are few and each counts. In layers that are selected, every trainable
    variable of two or more dimensions is taken, biases excepted.

    Args:
      model: a built Keras model of any kind.
      layers: names, or a predicate over layers; None: every layer with a kernel.
      purpose: what is done with them, for messages.

    Raises:
      ValueError: there are none, or a name does not exist; the message lists the reasons.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")], name="net")
    >>> [variable.path for variable in select_kernels(model)[0]]
    ['net/head/kernel']
    """
    if not model.built:
        raise ValueError(
            f"the model {model.name!r} is not built, so it has no weights yet: add keras.Input(shape) as its "
            "first layer, call model.build(input_shape), or call it once on a batch"
        )
    targets, skipped = find_kernels(model, layers, purpose)
    if not targets:
        said = "; ".join(f"{each['layer']}: {each['reason']}" for each in skipped) or (
            f"its {len(all_layers(model))} layers have no weights"
        )
        raise ValueError(
            f"the model {model.name!r} has no layer that can be {purpose} ({said}). Make a layer with a kernel "
            "trainable, or select layers by name"
        )
    return targets, skipped


def has_kernel(layer: keras.Layer) -> bool:
    """A predicate for `layers`: every layer with a kernel, depthwise ones too.

    >>> has_kernel(keras.layers.DepthwiseConv2D(3)), has_kernel(keras.layers.ReLU())
    (True, False)
    """
    return isinstance(layer, _DEPTHWISE) or any(hasattr(layer, name) for name in _KERNELS) or hasattr(layer, "cell")


def find_kernels(
    model: keras.Layer, layers: LayerSelection = None, purpose: str = "pruned"
) -> tuple[list[keras.Variable], list[dict[str, str]]]:
    """`select_kernels` of a model or a single layer, where there may be none."""
    chosen = None if layers is None else {id(layer) for layer in select_layers(model, layers)}
    targets: list[keras.Variable] = []
    reasons: dict[str, str] = {}
    pruned: set[str] = set()
    for layer, variable in owned_variables(model):
        reason = _reason(layer, variable, chosen is None or id(layer) in chosen, chosen is not None, purpose)
        if reason is None:
            targets.append(variable)
            pruned.add(layer.name)
        else:
            reasons.setdefault(layer.name, reason)
    skipped = [{"layer": name, "reason": why} for name, why in reasons.items() if name not in pruned]
    return targets, skipped


def _reason(layer: keras.Layer, variable: keras.Variable, chosen: bool, by_name: bool, purpose: str) -> str | None:
    if not chosen:
        return "not selected"
    if not variable.trainable or not layer.trainable:
        return "not trainable"
    if len(variable.shape) < 2:
        return "has no kernel of two or more dimensions"
    if variable.name == "bias":
        return f"a bias is not {purpose}"
    if by_name:
        return None
    if isinstance(layer, _DEPTHWISE) or variable.name == "depthwise_kernel":
        return f"depthwise kernels are few and sensitive; they are {purpose} in layers selected by name"
    if variable.name not in _KERNELS:
        return f"{variable.name} is no kernel; it is {purpose} in layers selected by name"
    return None
