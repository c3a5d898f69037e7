"""Which groups a user's choice of layers means."""

from collections.abc import Callable, Mapping, Sequence

import keras

from tfopt.channels.groups import Group
from tfopt.channels.ids import Classes
from tfopt.channels.propagate import OUTPUT, Flow
from tfopt.config import require
from tfopt.variables import select_layers

Layers = Sequence[str] | Mapping[str, float] | Callable[[keras.layers.Layer], bool] | None


def ratios_of(
    model: keras.Model, layers: Layers, flow: Flow, groups: Sequence[Group], classes: Classes
) -> list[tuple[Group, float | None]]:
    """The groups that are selected, each with its own ratio, None where it has that of the model.

    Raises:
      ValueError: a selected layer makes outputs of the model, or no channels of its own, or none that may go; or two
        layers of a group are given different ratios.

    >>> from tfopt.channels.groups import find_groups
    >>> from tfopt.channels.propagate import follow_channels
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(1, name="b")])
    >>> flow = follow_channels(model)
    >>> classes = flow.ties.classes()
    >>> ratios_of(model, ["b"], flow, find_groups(flow, classes)[0], classes)
    Traceback (most recent call last):
    ValueError: the output layer would be pruned: of 'b', its channels are outputs of the model; leave it out of layers
    """
    if layers is None:
        return [(group, None) for group in groups]
    if isinstance(layers, Mapping):
        require(bool(layers), "layers is an empty mapping: give it the names of layers, each with its ratio")
        chosen = {name: _producers(model, [name], repr(name), flow, classes) for name in layers}
    elif callable(layers):
        chosen = {"": _producers(model, layers, "the layers that the predicate selects", flow, classes)}
    else:
        # Checks for strings and unknown names first.
        select_layers(model, layers)
        chosen = {name: _producers(model, [name], repr(name), flow, classes) for name in layers}
    found = []
    for group in groups:
        inside = {id(producer.layer) for producer in group.producers}
        names = [name for name, selected in chosen.items() if inside & selected]
        own = {layers[name] for name in names} if isinstance(layers, Mapping) else set()
        require(
            len(own) < 2,
            f"{', '.join(map(repr, names))} lose their channels together and cannot have different ratios: received "
            f"{sorted(own)}",
        )
        if names:
            found.append((group, own.pop() if own else None))
    return found


def _producers(
    model: keras.Model,
    layers: Sequence[str] | Callable[[keras.layers.Layer], bool],
    said: str,
    flow: Flow,
    classes: Classes,
) -> set[int]:
    """The ids of the layers among those selected whose channels may go."""
    selected = [flow.producers[id(each)] for each in select_layers(model, layers) if id(each) in flow.producers]
    require(
        bool(selected),
        f"{said}: no channels are made there, or by what has no rule; layers must select convolutions or dense layers. "
        "Depthwise convolutions, normalizations and activations follow the layers before them",
    )
    reasons = {}
    for producer in selected:
        labels = classes.labels[producer.ids].tolist()
        frozen = [classes.frozen[label] for label in labels if label in classes.frozen]
        require(
            OUTPUT not in frozen,
            f"the output layer would be pruned: of {producer.name!r}, {OUTPUT}; leave it out of layers",
        )
        if len(frozen) == len(labels):
            reasons[id(producer.layer)] = f"{producer.name!r} ({frozen[0]})"
    require(
        len(reasons) < len(selected), f"{said}: none of these channels can be pruned: {', '.join(reasons.values())}"
    )
    return {id(producer.layer) for producer in selected} - reasons.keys()
