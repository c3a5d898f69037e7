"""Which rule rewrites which operation, and how layers with weights are rewritten."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

from tfopt.graph import Node
from tfopt.quantize import attention, recurrent, rules_elementwise, rules_shape
from tfopt.quantize.activations import LINEAR as NONE
from tfopt.quantize.activations import activation_of, by_function, is_keras
from tfopt.quantize.convolve import LINEAR, TRANSPOSED
from tfopt.quantize.integers import stored_bits
from tfopt.quantize.linear import QuantizedLinear, has_one_scale
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported, is_float
from tfopt.quantize.rules_elementwise import activate, activation
from tfopt.quantize.rules_shape import otherwise
from tfopt.quantize.scale import QuantizedScale

_SCALES = (layers.BatchNormalization, layers.Rescaling, layers.Normalization, "LayerScale")


def rule_for(node: Node) -> Rule:
    """The rule for a node: the first in `RULES` that takes its operation.

    Raises:
      Unsupported: no integer kernel has the operation's data format, or its activation.
    """
    operation = node.operation
    if getattr(operation, "data_format", "channels_last") == "channels_first":
        raise Unsupported("data_format='channels_first' has no integer kernels: build the model channels last")
    for kinds, rule in RULES:
        if any(_is_a(operation, kind) for kind in kinds):
            return rule
    if activation_of(operation) is not None:
        return activation
    if isinstance(operation, layers.Activation):
        raise Unsupported(f"there is no integer rule for the activation {operation.activation!r}")
    return otherwise


def _is_a(operation: Any, kind: Any) -> bool:
    """Whether an operation is of a class, or of Keras' class of this name, and computes as that class does."""
    if isinstance(kind, str):
        return type(operation).__name__ == kind and is_keras(operation)
    return isinstance(operation, kind) and type(operation).call is kind.call


def linear(rewrite: Rewrite, node: Node) -> None:
    """Convolution or dense, with a BatchNormalization behind it; a ReLU behind that is the quantizer's."""
    layer = node.operation
    _check_activation(layer)
    stored = stored_bits(rewrite.weight_bits(layer), rewrite.weight_bits.packed(layer))
    if isinstance(layer, TRANSPOSED) and (stored, rewrite.activation_bits) == (4, 8):
        raise Unsupported(
            f"LiteRT has no transposed convolution with packed weights of 4 bits: pass layers={{{layer.name!r}: 8}}, "
            "or weight_bits=tfopt.quantize.bits.InInt8(4)"
        )
    plain = rewrite.copy(layer, activation="linear", activity_regularizer=None)
    _linear(rewrite, node, rewrite.quantized(node.inputs[0]), plain, layer.kernel)


def separable(rewrite: Rewrite, node: Node) -> None:
    """A depthwise convolution, and a pointwise one that takes the layer's name, bias and activation."""
    layer = node.operation
    _check_activation(layer)
    depthwise, pointwise = rewrite.once((id(layer), "parts"), lambda: _split(rewrite, layer))
    made = rewrite.once(
        (id(layer), "depthwise"),
        lambda: _quantized_linear(rewrite, layer, depthwise, layer.depthwise_kernel, f"{node.name}_depthwise"),
    )
    tensor = rewrite.on_grid(made(rewrite.quantized(node.inputs[0])), f"{made.name}_quantize")
    _linear(rewrite, node, tensor, pointwise, layer.pointwise_kernel)


def einsum_dense(rewrite: Rewrite, node: Node) -> None:
    """Where it is a dense layer over the last axis."""
    layer = node.operation
    _check_activation(layer)
    inputs, _, rest = layer.equation.replace(" ", "").partition(",")
    kernel, _, outputs = rest.partition("->")
    same = (
        inputs[:-1] == outputs[:-1] and inputs[-1:] + outputs[-1:] == kernel and layer.bias_axes in (None, kernel[1:])
    )
    if len(kernel) != 2 or not same:
        raise Unsupported(f"of EinsumDense only dense layers over the last axis have a rule, not {layer.equation!r}")

    def make() -> layers.Dense:
        dense = layers.Dense(
            layer.kernel.shape[1],
            use_bias=layer.bias_axes is not None,
            name=layer.name,
            **_weight_options(layer, {"kernel": "kernel", "bias": "bias"}),
        )
        rewrite.hand_over(layer, dense)
        return dense

    dense = rewrite.once((id(layer), "dense"), make)
    _linear(rewrite, node, rewrite.quantized(node.inputs[0]), dense, layer.kernel)


def time_distributed(rewrite: Rewrite, node: Node) -> None:
    """A dense layer for each step, which is one over the last axis."""
    layer = node.operation.layer
    if not _is_a(layer, layers.Dense):
        raise Unsupported(f"of TimeDistributed only Dense has a rule, not {type(layer).__name__}")
    linear(rewrite, dataclasses.replace(node, operation=layer))


def scale(rewrite: Rewrite, node: Node) -> None:
    """BatchNormalization alone, Rescaling, Normalization; those behind it are one with it."""
    if not is_float(rewrite.values[node.inputs[0]].tensor):
        raise Unsupported(
            "it makes floats of integers, which no integer kernel can: declare the model's input as float32; in the "
            "file it is int8"
        )
    _check_last_axis(node)
    chain = [node]
    while (follower := rewrite.graph.only_consumer(chain[-1].outputs[0])) is not None:
        shared = any(rewrite.graph.calls(each.operation) > 1 for each in (chain[-1], follower))
        if shared or not any(_is_a(follower.operation, kind) for kind in _SCALES):
            break
        _check_last_axis(follower)
        chain.append(follower)
    rewrite.absorbed |= {*chain[1:]}

    def make() -> QuantizedScale:
        parts = [rewrite.copy(each.operation) for each in chain]
        return QuantizedScale(parts, name=rewrite.unique(node.name))

    made = rewrite.once((id(node.operation), "scale"), make)
    rewrite.put(chain[-1].outputs[0], made(rewrite.quantized(node.inputs[0])))


def has_few_values(kernel: Any) -> bool:
    """Whether a kernel looks clustered: its integers stay as few only under one common scale.

    >>> has_few_values(np.tile([0.1, 0.2, 0.3], 100))
    True
    """
    values = keras.ops.convert_to_numpy(kernel)
    return len(np.unique(values)) <= min(256, values.size // 4)


def _check_activation(layer: keras.layers.Layer) -> None:
    if by_function(layer.activation) is None:
        raise Unsupported(
            f"there is no integer rule for its activation {layer.activation!r}: give it none, and have what it does "
            "behind it, as layers or operators that have rules"
        )


def _linear(rewrite: Rewrite, node: Node, tensor: Any, plain: keras.layers.Layer, kernel: Any) -> None:
    """Puts a tensor through a layer without activation, a BatchNormalization behind it, and the node's activation."""
    layer = node.operation
    own, regularizer = by_function(layer.activation), layer.activity_regularizer
    assert own is not None
    output, batch_norm = node.outputs[0], None
    follower = rewrite.graph.only_consumer(output)
    # Under one scale, a gain for each channel would make many values of a few.
    few_stay_few = not (has_few_values(kernel) and has_one_scale(plain))
    alone = own == NONE and regularizer is None and rewrite.graph.calls(layer) == 1 and few_stay_few
    if alone and follower is not None and _folds(rewrite, follower):
        rewrite.absorbed.add(follower)
        batch_norm, output = rewrite.copy(follower.operation), follower.outputs[0]
    made = rewrite.once(
        (id(layer), "linear"), lambda: _quantized_linear(rewrite, layer, plain, kernel, node.name, batch_norm)
    )
    activate(rewrite, output, made(tensor), own, f"{node.name}_{own.kind}")
    if regularizer is not None:
        value = rewrite.values[output]
        name = rewrite.unique(f"{node.name}_regularizer")
        saved = keras.regularizers.serialize(regularizer)
        penalty = layers.Identity(activity_regularizer=saved, name=name, dtype="float32")
        rewrite.put(output, penalty(value.tensor), value.quantizer)


def _folds(rewrite: Rewrite, node: Node) -> bool:
    """Whether it is a BatchNormalization over the last axis, which folds into what precedes it."""
    layer, rank = node.operation, len(node.outputs[0].shape)
    is_batch_norm = _is_a(layer, layers.BatchNormalization) and rewrite.graph.calls(layer) == 1
    return is_batch_norm and layer.axis % rank == rank - 1


def _quantized_linear(
    rewrite: Rewrite,
    layer: keras.layers.Layer,
    plain: keras.layers.Layer,
    kernel: Any,
    name: str,
    batch_norm: Any = None,
) -> QuantizedLinear:
    return QuantizedLinear(
        plain,
        batch_norm,
        bits=rewrite.weight_bits(layer),
        packed=rewrite.weight_bits.packed(layer),
        one_scale=has_few_values(kernel),
        name=rewrite.unique(name),
    )


def _split(rewrite: Rewrite, layer: Any) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """A separable convolution as a depthwise and a pointwise one."""
    depthwise_kind, pointwise_kind = {
        1: (layers.DepthwiseConv1D, layers.Conv1D),
        2: (layers.DepthwiseConv2D, layers.Conv2D),
    }[layer.rank]
    depthwise = depthwise_kind(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **_weight_options(layer, {"depthwise": "depthwise"}),
    )
    pointwise = pointwise_kind(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        name=layer.name,
        **_weight_options(layer, {"kernel": "pointwise", "bias": "bias"}),
    )
    rewrite.hand_over(layer, depthwise, pointwise)
    return depthwise, pointwise


def _weight_options(layer: Any, names: dict[str, str]) -> dict[str, Any]:
    """What a layer says of its weights, as arguments of another kind of layer: new name -> old name."""
    options = {
        f"{new}_{option}": getattr(layer, f"{old}_{option}")
        for new, old in names.items()
        for option in ("initializer", "regularizer", "constraint")
    }
    return {**options, "trainable": layer.trainable, "dtype": "float32"}


def _check_last_axis(node: Node) -> None:
    """Raises where a layer scales along another axis than the channels."""
    layer, rank = node.operation, len(node.outputs[0].shape)
    axis = getattr(layer, "axis", -1)
    axes = axis if isinstance(axis, list | tuple) else [axis]
    values = [getattr(layer, name, 0.0) for name in ("scale", "offset")]
    if any(each % rank != rank - 1 for each in axes) or any(np.ndim(value) > 1 for value in values):
        raise Unsupported("it scales along another axis than the last, which no integer kernel does")


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    ((layers.SeparableConv1D, layers.SeparableConv2D), separable),
    (LINEAR, linear),
    ((layers.EinsumDense,), einsum_dense),
    (_SCALES, scale),
    ((layers.TimeDistributed,), time_distributed),
    # Before the others, which do not look at masks.
    *attention.RULES,
    *rules_shape.RULES,
    *rules_elementwise.RULES,
    *recurrent.RULES,
]
