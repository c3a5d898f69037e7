"""`rebuild`: a functional or Sequential model anew, with some of its layers replaced and all weights kept."""

from collections.abc import Callable
from typing import Any

import keras

from tfopt.config import require


def rebuild(
    model: keras.Model, change: Callable[[keras.Layer], keras.Layer], made: dict[int, Any] | None = None
) -> keras.Model:
    """The model with what `change` gives in place of each layer, also inside nested models; not compiled.

    Args:
      model: functional or Sequential; it is left as it is.
      change: gives the new layer for an old one; called once for each.
      made: what has been made by now, by the id of the old layer.

    Raises:
      ValueError: the model, or one inside it, is subclassed.
    """
    require_graph(model)
    made = {} if made is None else made

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):
            # A raw operator, such as the one behind x + 1.
            return layer
        if id(layer) not in made:
            is_model = isinstance(layer, keras.Model)
            made[id(layer)] = rebuild(layer, change, made) if is_model else change(layer)
        return made[id(layer)]

    # Keras would compile the clone likewise, with an optimizer of its own.
    was_compiled, model.compiled = model.compiled, False
    try:
        return keras.models.clone_model(model, clone_function=clone)
    finally:
        model.compiled = was_compiled


def require_graph(model: Any) -> None:
    """Raises a ValueError unless it is a functional or Sequential Keras 3 model."""
    require(
        isinstance(model, keras.Model),
        f"expected a Keras 3 model, received {type(model).__module__}.{type(model).__name__}: for a Keras 2 model use "
        "tfopt.load_model on its file",
    )
    require(
        isinstance(model, keras.Sequential) or hasattr(model, "_run_through_graph"),
        f"{model.name!r} is a subclassed model ({type(model).__name__}), which has no graph of layers: build it with "
        "the functional API, outputs = layers(keras.Input(...)), keras.Model(inputs, outputs)",
    )


def copy_layer(layer: keras.Layer) -> keras.Layer:
    """A layer with the same configuration and weights; itself where it has no weights.

    Raises:
      ValueError: it is of a class whose configuration does not make it again.

    >>> dense = keras.layers.Dense(2)
    >>> dense.build((None, 3))
    >>> bool((copy_layer(dense).kernel == dense.kernel).numpy().all())
    True
    """
    if not layer.weights:
        return layer
    copied = type(layer).from_config(layer.get_config())
    if not copied.built:
        copied.build_from_config(layer.get_build_config() or {})
    require(
        len(copied.weights) == len(layer.weights),
        f"the layer {layer.name!r} ({type(layer).__name__}) cannot be copied: made from its get_config() and built, it "
        f"has {len(copied.weights)} weights instead of {len(layer.weights)}. Create all weights in its build()",
    )
    copied.set_weights(layer.get_weights())
    if isinstance(copied, keras.layers.Normalization):
        # It computes from constants that it makes of its weights.
        copied.finalize_state()
    return copied


def layers_of(model: keras.Layer, kind: type) -> list[Any]:
    """The layers of a class in a model, at any depth, once each."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]
