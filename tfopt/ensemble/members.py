"""Members of an ensemble as parts of one graph: copies with names of their own, with new weights or the same."""

from collections.abc import Callable
from typing import Any

import keras

from tfopt.config import require
from tfopt.distill.outputs import kind_of
from tfopt.graph import flatten, functional
from tfopt.train.task import own_task
from tfopt.variables import all_layers

# What outputs are, and what makes them of the tensor before.
ENDINGS = ("softmax", "sigmoid", "linear")


def ending(model: keras.Model) -> str | None:
    """ "softmax", "sigmoid" or "linear", by the last activation of a functional or Sequential model; None: another.

    >>> ending(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")]))
    'softmax'
    """
    last = _last(model)
    if isinstance(last, keras.Model):
        return ending(last)
    name = type(last).__name__.lower()
    if name in ("softmax", "sigmoid"):
        return name if getattr(last, "axis", -1) == -1 else None
    activation = getattr(last, "activation", keras.activations.linear)
    return next((each for each in ENDINGS if activation is getattr(keras.activations, each)), None)


def kind(model: keras.Model) -> str:
    """What the outputs of a model mean: "softmax", "sigmoid" or "values", by its loss, else by its last activation.

    Raises:
      ValueError: neither tells.
    """
    end = ending(model)
    if model.compiled:
        losses = [each for each in keras.tree.flatten(own_task(model).loss) if each is not None]
        try:
            return kind_of(losses[0])
        except ValueError:
            # A loss of the user's own; the activation may tell.
            if end not in ("softmax", "sigmoid"):
                raise
    require(
        end in ("softmax", "sigmoid"),
        f"{model.name!r} does not end in a softmax or sigmoid, and is not compiled, so nothing tells whether it gives "
        "logits or plain numbers: compile it with the loss that it was trained with",
    )
    assert end is not None
    return end


def named(model: keras.Model, name: str, logits: bool = False) -> keras.Model:
    """A copy with the same weights, named `name`, in which the name of every layer begins with it.

    So the variables of several members have different paths, by which masks and promises find them.

    Args:
      model: built, functional or Sequential.
      name: of the copy.
      logits: whether the softmax or sigmoid at the end is left out.

    Raises:
      ValueError: the model is subclassed, or its last layer cannot be taken apart.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax", name="out")])
    >>> [variable.path for variable in named(model, "member1", logits=True).variables]
    ['member1_out/kernel', 'member1_out/bias']
    """
    # That of a Sequential model: its own name would become part of the paths.
    model = functional(model, model.name)
    last = _last(model)
    inside = logits and getattr(last, "activation", None) in (keras.activations.softmax, keras.activations.sigmoid)
    cut = logits and ending(model) != "linear" and (not inside or isinstance(last, keras.layers.Activation))
    require(
        not logits or (ending(model) is not None and not isinstance(last, keras.Model)),
        f"the logits of {model.name!r} are out of reach: its last layer is {last.name!r} ({type(last).__name__}), "
        "expected a layer with softmax or sigmoid as its activation, or either as a layer",
    )
    require(
        not logits or flatten(model).calls(last) == 1,
        f"the last layer {last.name!r} of {model.name!r} is called several times, so its logits cannot be taken alone",
    )

    def rename(layer: Any) -> dict[str, Any]:
        options = {"activation": "linear"} if layer is last and inside and not cut else {}
        return {"name": f"{name}_{layer.name}", **options}

    copied = _copy(model, rename)
    for old, new in zip(model.variables, copied.variables, strict=True):
        new.assign(keras.ops.convert_to_numpy(old))
    _finalize(copied)
    inner = functional(copied, name)
    output = inner._outputs[0]
    if cut:
        history = output._keras_history
        output = history.operation._inbound_nodes[history.node_index].input_tensors[0]
    member = keras.Model(inner.input, output, name=name)
    _freeze_alike(model, copied)
    return member


def fresh(model: keras.Model) -> keras.Model:
    """A copy with new weights where the model learns, by the initializers of its layers and Keras' random state.

    Layers without anything to learn, such as an adapted Normalization or frozen ones, keep their weights.

    Raises:
      ValueError: the model is subclassed; or its initializers have seeds of their own, so that copies are all the same.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> bool((fresh(model).weights[0].numpy() == model.weights[0].numpy()).any())
    False
    """
    functional(model, model.name)
    copied, other = _copy(model), _copy(model)
    kernels = [
        (one, two)
        for one, two in zip(copied.trainable_variables, other.trainable_variables, strict=True)
        if len(one.shape) >= 2
    ]
    same = [one.path for one, two in kernels if bool((one.numpy() == two.numpy()).all())]
    require(
        len(same) < max(1, len(kernels)),
        f"{model.name!r} begins with the same weights each time ({', '.join(same[:3]) or 'it has no kernels to learn'})"
        ", so members would differ by the order of the data alone: leave the seeds of its initializers out, or train "
        "from the weights that it has with fresh=False",
    )
    for old, new in zip(_leaves(model), _leaves(copied), strict=True):
        if not old.trainable_variables:
            new.set_weights(old.get_weights())
    _finalize(copied)
    _freeze_alike(model, copied)
    return copied


def same(model: keras.Model) -> keras.Model:
    """A copy with the same weights."""
    copied = _copy(model)
    for old, new in zip(model.variables, copied.variables, strict=True):
        new.assign(keras.ops.convert_to_numpy(old))
    _finalize(copied)
    _freeze_alike(model, copied)
    return copied


def _copy(model: keras.Model, rename: Callable[[Any], dict[str, Any]] = lambda layer: {}) -> keras.Model:
    """A copy with new weights; `rename` gives what changes in a layer's configuration."""

    def copy_layer(layer: Any) -> Any:
        config = {**layer.get_config(), **rename(layer)}
        # The function is the caller's own, and in memory already.
        options = {"safe_mode": False} if isinstance(layer, keras.layers.Lambda) else {}
        return type(layer).from_config(config, **options)

    return keras.models.clone_model(model, clone_function=copy_layer, recursive=True)


def _last(model: keras.Model) -> Any:
    """The operation behind the first output."""
    return functional(model, model.name)._outputs[0]._keras_history.operation


def _leaves(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in all_layers(model) if not isinstance(layer, keras.Model)]


def _finalize(model: keras.Model) -> None:
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            # It computes from constants that it makes of its variables.
            layer.finalize_state()


def _freeze_alike(model: keras.Model, copied: keras.Model) -> None:
    """What is frozen stays frozen; a layer tells all inside it, which come after it and are told last."""
    for old, new in zip(all_layers(model), all_layers(copied), strict=True):
        new.trainable = old.trainable
