"""Changing the precision in which a model computes, and how a model is made anew from other configs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from tfopt.graph import deep_graphs


def to_policy(model: keras.Model, policy: str) -> keras.Model:
    """Rebuilds a model with another dtype policy in every layer.

    Weights, states of seed generators, variable paths and names are kept. Under a mixed policy the
    layers that make the outputs compute in float32, as a softmax or a loss in 16 bits loses too much. The
    copy is not compiled, and has no constraints other than those in the layers' configs.

    Args:
      model: functional or Sequential, built; nested models and shared layers are fine.
      policy: "float32", "mixed_float16", "mixed_bfloat16", or another name that `keras.DTypePolicy` knows.

    Raises:
      ValueError: for a subclassed or unbuilt model, and for one that Keras has quantized.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    >>> [layer.compute_dtype for layer in to_policy(model, "mixed_bfloat16").layers]
    ['bfloat16', 'float32']
    """
    wanted = keras.DTypePolicy(policy)
    _check_all(model)
    is_mixed = wanted.compute_dtype != wanted.variable_dtype
    last = {id(layer) for layer in _output_layers(model)} if is_mixed else set()

    def configure(layer: keras.Layer, config: Mapping[str, Any]) -> Any:
        return _with_policy(config, wanted.variable_dtype if id(layer) in last else wanted.name)

    return rebuild(model, configure)


@deep_graphs()
def rebuild(model: keras.Model, configure: Callable[[keras.Layer, Mapping[str, Any]], Any]) -> keras.Model:
    """A copy of a model whose layers are made from other configs; all variables are as before, paths and names too.

    The copy is not compiled, and has no constraints other than those in the layers' configs.

    Args:
      model: functional or Sequential, built; nested models and shared layers are fine.
      configure: from a layer and its config, the config of its copy; for the layers of nested models, not for these.

    Raises:
      ValueError: for a subclassed or unbuilt model, and for one that Keras has quantized.
    """
    _check_all(model)

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):
            return layer  # a plain operation, such as `x + 1`, has no state and follows its inputs
        return layer.__class__.from_config(configure(layer, layer.get_config()))

    compiled = [each for each in _layers(model) if isinstance(each, keras.Model) and each.compiled]
    for each in compiled:
        each.compiled = False  # else Keras would rebuild losses and metrics, and fail on unregistered ones
    try:
        copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    finally:
        for each in compiled:
            each.compiled = True
    _copy_variables(model, copy)
    return copy


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Inside the block, layers that are made compute in float32 whatever the global dtype policy is."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def computes_in(model: keras.Model, dtype: str) -> bool:
    """Whether every layer of the model computes in `dtype`."""
    return all(layer.compute_dtype == dtype for layer in _layers(model))


def _layers(model: keras.Model) -> Iterator[keras.Layer]:
    """The model itself and all layers inside it, at any depth."""
    yield from model._flatten_layers(include_self=True, recursive=True)


def _is_graph(model: Any) -> bool:
    # Functional models, and subclasses made by `super().__init__(inputs, outputs)`, keep a graph.
    return isinstance(model, keras.Sequential) or hasattr(model, "_run_through_graph")


def _check_all(model: keras.Model) -> None:
    for layer in _layers(model):
        _check(model, layer)


def _check(model: keras.Model, layer: keras.Layer) -> None:
    if isinstance(layer, keras.Model) and not _is_graph(layer):
        where = "" if layer is model else f" (inside {model.name!r})"
        raise ValueError(
            f"{layer.name!r}{where} is a subclassed model ({type(layer).__name__}): its layers cannot be "
            "rebuilt with another dtype policy. Build it as a functional or Sequential model, or create "
            'it under keras.config.set_dtype_policy("float32")'
        )
    if isinstance(layer, keras.Sequential) and not layer.built:
        raise ValueError(
            f"the Sequential model {layer.name!r} is not built: give it a keras.Input as first layer, or "
            "call it on data once"
        )
    if getattr(layer, "quantization_mode", None):
        raise ValueError(
            f"the layer {layer.name!r} was quantized by Keras ({layer.quantization_mode}): start from the "
            "model before model.quantize()"
        )


def _output_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """The layers that make a model's outputs, looking through plain operations and into nested models."""
    if isinstance(model, keras.Sequential):
        pending = [model.layers[-1]]
    else:
        pending = [tensor._keras_history.operation for tensor in model.outputs]
    seen: set[int] = set()
    while pending:
        operation = pending.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        if isinstance(operation, keras.Model):
            yield from _output_layers(operation)
        elif isinstance(operation, keras.Layer):
            yield operation
        else:
            pending += [
                tensor._keras_history.operation for node in operation._inbound_nodes for tensor in node.input_tensors
            ]


def _with_policy(config: Any, policy: str) -> Any:
    """A layer's config, with those of the layers inside it, under another policy."""
    if isinstance(config, dict):
        if config.get("class_name") in ("DTypePolicy", "DTypePolicyMap", "FloatDTypePolicy"):
            return {"module": "keras", "class_name": "DTypePolicy", "config": {"name": policy}}
        return {key: _with_policy(value, policy) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_with_policy(each, policy) for each in config)
    return config


def _copy_variables(source: keras.Model, target: keras.Model) -> None:
    def shapes(model: keras.Model) -> list[tuple[str, tuple[int, ...]]]:
        return [(variable.name, tuple(variable.shape)) for variable in model.variables]

    before, after = shapes(source), shapes(target)
    if before != after:
        changed = sorted({name for name, _ in set(before) ^ set(after)})
        raise ValueError(
            f"rebuilding {source.name!r} changed its variables: {', '.join(changed) or 'their order'}. A "
            "layer's get_config() does not describe it wholly; complete it"
        )
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(keras.ops.cast(old, new.dtype))
        # Keras numbers seed generators anew, and builds the layers inside a wrapper under another scope.
        new._path = old.path
