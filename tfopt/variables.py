"""Finding the variables of a Keras model that hold its weights, with the layers that own them."""

from collections.abc import Callable, Sequence

import keras

from tfopt.config import did_you_mean

LayerSelection = Sequence[str] | Callable[[keras.Layer], bool] | None


def owned_variables(model: keras.Model) -> list[tuple[keras.Layer, keras.Variable]]:
    """(layer, variable) for every variable of the model, nested and shared layers once, the innermost owner.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
    >>> [(layer.name, variable.name) for layer, variable in owned_variables(model)]
    [('d', 'kernel'), ('d', 'bias')]
    """
    owners: dict[int, tuple[keras.Layer, keras.Variable]] = {}
    # Parents come first, so the innermost layer is the one that stays.
    for layer in model._flatten_layers():
        for variable in layer.variables:
            owners[id(variable)] = (layer, variable)
    # TensorFlow-side wrappers hide nothing here: ids are those of keras.Variable objects.
    return list(owners.values())


def step_counter(model: keras.Model) -> keras.Variable:
    """The optimizer's own count of training steps, of a compiled model."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    # The public `iterations` counts updates: with gradient accumulation it is a new tensor each time, and smaller
    # than the steps that fit plans.
    return optimizer._iterations


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Every layer inside the model, at any depth, once."""
    return list({id(layer): layer for layer in model._flatten_layers(include_self=False)}.values())


def select_layers(model: keras.Model, layers: LayerSelection) -> list[keras.Layer]:
    """The layers of the model that `layers` names, or for which it is true; all of them for None.

    Raises:
      ValueError: a name that no layer has (with the nearest one), or a selection of nothing.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> select_layers(model, ["haed"])
    Traceback (most recent call last):
    ValueError: the model 'sequential...' has no layer 'haed'; did you mean 'head'? There are ...
    """
    every = all_layers(model)
    if layers is None:
        return every
    if callable(layers):
        chosen = [layer for layer in every if layers(layer)]
    else:
        if isinstance(layers, str):
            raise TypeError(f"layers must be a list of names or a predicate, received the string {layers!r}")
        names = [layer.name for layer in every]
        for name in layers:
            if name not in names:
                hint = did_you_mean(repr(name), map(repr, names))
                raise ValueError(f"the model {model.name!r} has no layer {name!r}; {hint}")
        wanted = {id(inner) for layer in every if layer.name in layers for inner in layer._flatten_layers()}
        chosen = [layer for layer in every if id(layer) in wanted]
    if not chosen:
        raise ValueError(f"layers selects none of the {len(every)} layers of the model {model.name!r}")
    return chosen
