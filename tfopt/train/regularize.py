"""`regularized`: penalties on the kernels of a model that exists."""

from collections.abc import Mapping
from typing import Any

import keras

from tfopt.config import require
from tfopt.kernels import select_kernels
from tfopt.train.precision import rebuild
from tfopt.variables import LayerSelection, owned_variables


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
    penalties = {id(variable): _penalty(variable, given) for variable in kernels}

    def configure(layer: keras.Layer, config: Mapping[str, Any]) -> Any:
        own = {_key(each): penalties[id(each)] for each in layer.variables if id(each) in penalties}
        for key, penalty in own.items():
            config = _with_penalty(config, layer, key, penalty)
        return config

    copy = rebuild(model, configure)
    for (layer, old), new in zip(owned_variables(model), copy.variables, strict=True):
        require(
            (new.regularizer is not None) == (id(old) in penalties or old.regularizer is not None),
            f"the layer {layer.name!r} cannot have a penalty on its {old.name} alone: name the layer around it, or "
            "leave it out with layers=...",
        )
    if model.compiled:
        copy.compile_from_config(model.get_compile_config())
        for own, learnt in zip(copy.optimizer.variables, model.optimizer.variables, strict=True):
            own.assign(learnt)
    return copy


def _key(variable: keras.Variable) -> str:
    """What a layer's config calls the penalty of a variable."""
    return variable.name.replace("_kernel", "") + "_regularizer"


def _penalty(variable: keras.Variable, given: Mapping[str, float]) -> keras.regularizers.Regularizer:
    l1, l2, orthogonal = given.values()
    if not orthogonal:
        return keras.regularizers.L1L2(l1, l2)
    require(
        variable.shape[-1] > 1,
        f"{variable.path!r} has one output unit, so there is nothing for it to be orthogonal to: leave its layer out "
        "with layers=...",
    )
    if len(variable.shape) == 2 and not (l1 or l2):
        return keras.regularizers.OrthogonalRegularizer(orthogonal, mode="columns")
    return KernelPenalty(l1, l2, orthogonal)


def _with_penalty(config: Any, layer: keras.Layer, key: str, penalty: keras.regularizers.Regularizer) -> Any:
    """A layer's config with a penalty, in those of the layers inside it too."""
    where = f"the layer {layer.name!r} ({type(layer).__name__})"
    changed = 0

    def walk(part: Any) -> Any:
        nonlocal changed
        if not isinstance(part, Mapping):
            return part
        found = {name: walk(value) for name, value in part.items()}
        if key in found:
            require(
                found[key] is None,
                f"{where} has a {key} already: leave it out with layers=..., or build the model without it",
            )
            changed += 1
            found[key] = keras.regularizers.serialize(penalty)
        return found

    result = walk(config)
    require(changed > 0, f"{where} takes no {key}: leave it out with layers=...")
    return result


@keras.saving.register_keras_serializable("tfopt")
class KernelPenalty(keras.regularizers.Regularizer):
    """L1, L2 and Keras' OrthogonalRegularizer together, for kernels of any rank: the last axis is that of the outputs.

    Args:
      l1: as of `keras.regularizers.L1L2`.
      l2: as of `keras.regularizers.L1L2`.
      orthogonal: factor of the mean absolute cosine of two columns.

    >>> float(KernelPenalty(l1=1.0, orthogonal=1.0)(keras.ops.ones((2, 2, 3))))
    13.0
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0, orthogonal: float = 0.0) -> None:
        self.l1, self.l2, self.orthogonal = l1, l2, orthogonal

    def __call__(self, x: Any) -> Any:
        """The penalty of a kernel."""
        columns = keras.ops.reshape(x, (-1, x.shape[-1]))
        alike = keras.regularizers.OrthogonalRegularizer(self.orthogonal, mode="columns")(columns)
        return keras.regularizers.L1L2(self.l1, self.l2)(x) + alike

    def get_config(self) -> dict[str, float]:
        """The arguments."""
        return {"l1": self.l1, "l2": self.l2, "orthogonal": self.orthogonal}
