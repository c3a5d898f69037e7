"""`regularized`: penalties on the kernels of a model that exists."""

from collections.abc import Mapping
from typing import Any

import keras

from tfopt.config import require
from tfopt.kernels import select_kernels
from tfopt.train.precision import rebuild
from tfopt.variables import LayerSelection, all_layers, owned_variables

_REGULARIZERS = {
    "kernel": "kernel_regularizer",
    "recurrent_kernel": "recurrent_regularizer",
    "pointwise_kernel": "pointwise_regularizer",
    "depthwise_kernel": "depthwise_regularizer",
    "embeddings": "embeddings_regularizer",
}


def regularized(
    model: keras.Model, l1: float = 0.0, l2: float = 0.0, orthogonal: float = 0.0, layers: LayerSelection = None
) -> keras.Model:
    """A copy of the model whose loss has a penalty for each kernel; weights, names and all else are the same.

    Depthwise kernels have none where no layers are named; biases and normalization never. The penalties are Keras'
    own, and files need no tfopt to be read, except for `orthogonal` on kernels of convolutions or beside another one.

    Args:
      model: functional or Sequential, built. What it was compiled with, the copy is too, with the optimizer's state.
      l1: factor of the sum of the absolute weights, at least 0.
      l2: factor of the sum of the squared weights, at least 0.
      orthogonal: factor of the mean absolute cosine between the weights of two output units, at least 0.
      layers: names, or a predicate over layers; None: every layer with a kernel.

    Raises:
      ValueError: nothing is asked for, a layer has a penalty already, or can have none.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_initializer="ones")])
    >>> [float(loss) for loss in regularized(model, l2=0.5).losses]
    [2.0]
    """
    given = {"l1": l1, "l2": l2, "orthogonal": orthogonal}
    for name, value in given.items():
        require(value >= 0, f"{name} must be at least 0, received {value!r}")
    require(any(given.values()), "regularized needs one of l1, l2 and orthogonal above 0")
    kernels, _ = select_kernels(model, layers, purpose="regularized")
    targets = {id(variable) for variable in kernels}
    found = {
        layer.name: _allowed(layer, orthogonal, targets)
        for layer in all_layers(model)
        if not isinstance(layer, keras.Model) and targets & {id(variable) for variable in layer.variables}
    }

    def configure(layer: keras.Layer, config: dict[str, Any]) -> dict[str, Any]:
        return _with_penalty(config, found[layer.name], given) if layer.name in found else config

    copy = rebuild(model, configure)
    for (layer, old), (_, new) in zip(owned_variables(model), owned_variables(copy), strict=True):
        wanted = id(old) in targets
        require(
            wanted == (new.regularizer is not None) or (not wanted and old.regularizer is not None),
            f"the layer {layer.name!r} ({type(layer).__name__}) cannot have a penalty on {old.name!r} alone: name the "
            "layer around it, or leave it out with layers=...",
        )
    if model.compiled:
        copy.compile_from_config(model.get_compile_config())
        for own, learnt in zip(copy.optimizer.variables, model.optimizer.variables, strict=True):
            own.assign(learnt)
    return copy
