"""How each kind of operation is rewritten."""

from typing import Any

import keras
import numpy as np
from keras import layers

from tfopt.quantize import attention, recurrent
from tfopt.quantize.activations import (
    FIXED_RANGES,
    Activation,
    QuantizedActivation,
    activation_of,
    by_function,
)
from tfopt.quantize.activations import LINEAR as NONE
from tfopt.quantize.arithmetic import QuantizedArithmetic
from tfopt.quantize.convolve import LINEAR
from tfopt.quantize.graph import Node, Ref
from tfopt.quantize.linear import QuantizedLinear
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported
from tfopt.quantize.scale import SCALES, QuantizedScale

# Identity when the model predicts: for training only.
_TRAINING_ONLY = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    layers.Identity,
)
# Raw operators of Keras have no public classes, so they go by the names of these.
_ARITHMETIC = {
    "Add": "add",
    "Subtract": "subtract",
    "Multiply": "multiply",
    "Maximum": "maximum",
    "Minimum": "minimum",
}


def rule_for(node: Node) -> Rule:
    """The rule for a node: the first in `RULES` that takes its operation.

    Raises:
      Unsupported: there is none.
    """
    operation = node.operation
    if getattr(operation, "data_format", "channels_last") == "channels_first":
        raise Unsupported("data_format='channels_first' has no integer kernels: build the model channels last")
    for kinds, rule in RULES:
        if any(node.type == kind if isinstance(kind, str) else isinstance(operation, kind) for kind in kinds):
            return rule
    if activation_of(operation) is not None:
        return activation
    raise Unsupported(f"there is no integer rule for {node.type}")


def linear(rewrite: Rewrite, node: Node) -> None:
    """Convolution or dense, with a BatchNormalization behind it; a ReLU behind that is the quantizer's."""
    layer = node.operation
    own = by_function(layer.activation)
    if own is None:
        raise Unsupported(f"there is no integer rule for its activation {layer.activation!r}")
    output, batch_norm = node.outputs[0], None
    follower = rewrite.graph.only_consumer(output)
    if own == NONE and rewrite.graph.calls(layer) == 1 and follower is not None and _folds(follower):
        rewrite.absorbed.add(follower)
        batch_norm, output = follower.operation, follower.outputs[0]

    def make() -> QuantizedLinear:
        return QuantizedLinear(
            rewrite.copy(layer, activation="linear"),
            None if batch_norm is None else rewrite.copy(batch_norm),
            bits=rewrite.weight_bits(layer),
            one_scale=has_few_values(layer.kernel),
            name=rewrite.unique(node.name),
        )

    tensor = rewrite.once((id(layer), "linear"), make)(rewrite.quantized(node.inputs[0]))
    _activate(rewrite, output, tensor, own, f"{node.name}_{own.kind}")


def _folds(node: Node) -> bool:
    """Whether it is a BatchNormalization over the last axis, which folds into what precedes it."""
    layer, rank = node.operation, len(node.outputs[0].shape)
    return isinstance(layer, layers.BatchNormalization) and layer.axis % rank == rank - 1


def has_few_values(kernel: Any) -> bool:
    """Whether a kernel looks clustered: its integers stay as few only under one common scale.

    >>> has_few_values(np.tile([0.1, 0.2, 0.3], 100))
    True
    """
    values = keras.ops.convert_to_numpy(kernel)
    return len(np.unique(values)) <= min(256, values.size // 4)


def separable(rewrite: Rewrite, node: Node) -> None:
    """A depthwise convolution, and a pointwise one that takes the layer's name, bias and activation."""
    raise Unsupported("not yet")


def scale(rewrite: Rewrite, node: Node) -> None:
    """BatchNormalization alone, Rescaling, Normalization."""
    layer = node.operation

    def make() -> QuantizedScale:
        return QuantizedScale(rewrite.copy(layer), name=rewrite.unique(node.name))

    made = rewrite.once((id(layer), "scale"), make)
    rewrite.put(node.outputs[0], made(rewrite.quantized(node.inputs[0])))


def training_only(rewrite: Rewrite, node: Node) -> None:
    """What training adds stays where it is; the grid is that of the input."""
    value = rewrite.values[node.inputs[0]]
    rewrite.put(node.outputs[0], rewrite.copy_named(node)(value.tensor), value.quantizer)


def move(rewrite: Rewrite, node: Node) -> None:
    """Pooling by the largest, padding, reshaping: the values' scale stays."""
    _same_scale(rewrite, node, "exact")


def average(rewrite: Rewrite, node: Node) -> None:
    """LiteRT's averages have the scale of their input."""
    _same_scale(rewrite, node, "rounded")


def _same_scale(rewrite: Rewrite, node: Node, again: str) -> None:
    args, kwargs = rewrite.arguments(node)
    tensor = rewrite.copy_named(node)(*args, **kwargs)
    rewrite.requantize(node.outputs[0], tensor, node.inputs[0], again)


def upsample(rewrite: Rewrite, node: Node) -> None:
    """Repeats values, or makes averages of them."""
    _same_scale(rewrite, node, "exact" if node.operation.interpolation == "nearest" else "rounded")


def mean(rewrite: Rewrite, node: Node) -> None:
    """Global averages have a scale of their own."""
    args, kwargs = rewrite.arguments(node)
    rewrite.put(node.outputs[0], rewrite.copy_named(node)(*args, **kwargs))


def concatenate(rewrite: Rewrite, node: Node) -> None:
    """One quantizer behind it, none before it where it can be spared: all parts must have one scale."""

    def new(value: Any) -> Any:
        return rewrite.operand(node, value) if isinstance(value, Ref) else value

    args, kwargs = keras.tree.map_structure(new, (node.args, dict(node.kwargs)))
    rewrite.put(node.outputs[0], rewrite.copy_named(node)(*args, **kwargs))


def arithmetic(rewrite: Rewrite, node: Node) -> None:
    """An operator over tensors, or a tensor and a constant."""
    operands = keras.tree.flatten([node.args, dict(node.kwargs)])
    constants = [each for each in operands if not isinstance(each, Ref)]
    if len(constants) > 1:
        raise Unsupported(f"{node.type} takes the arguments {constants}, which no integer kernel has")
    made = QuantizedArithmetic(
        _ARITHMETIC[node.type],
        constant=constants[0] if constants else None,
        constant_first=not isinstance(operands[0], Ref),
        count=len(operands),
        bits=rewrite.activation_bits,
        name=rewrite.unique(node.name),
    )
    rewrite.put(node.outputs[0], made([rewrite.quantized(each) for each in operands if isinstance(each, Ref)]))


def activation(rewrite: Rewrite, node: Node) -> None:
    """An activation as a layer or operator of its own."""
    found = activation_of(node.operation)
    assert found is not None
    source, output = node.inputs[0], node.outputs[0]
    if found == NONE:
        value = rewrite.values[source]
        rewrite.put(output, value.tensor, value.quantizer)
        return
    tensor = rewrite.operand(node, source) if found.kind == "clip" else rewrite.quantized(source)
    _activate(rewrite, output, tensor, found, node.name)


def _activate(rewrite: Rewrite, output: Ref, tensor: Any, function: Activation, name: str) -> None:
    """Puts a tensor behind an activation, as `output` of the graph."""
    if function == NONE:
        rewrite.put(output, tensor)
    elif function.kind == "clip":
        follower = rewrite.graph.only_consumer(output)
        if function["low"] == 0.0 and follower is not None and follower.type == "Concatenate":
            rewrite.put(output, layers.ReLU(function["high"], name=rewrite.unique(name))(tensor))
        else:
            rewrite.quantize(output, tensor, name, clip=(function["low"], function["high"]))
    else:
        made = QuantizedActivation(function.kind, rewrite.activation_bits, name=rewrite.unique(name))
        tensor = made(rewrite.on_grid(tensor, f"{name}_input"))
        rewrite.put(output, tensor)
        if function.kind in FIXED_RANGES:
            rewrite.quantize(output, tensor, fixed=FIXED_RANGES[function.kind])


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    ((layers.SeparableConv1D, layers.SeparableConv2D), separable),
    (LINEAR, linear),
    (SCALES, scale),
    (_TRAINING_ONLY, training_only),
    ((layers.MaxPooling1D, layers.MaxPooling2D, layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D), move),
    ((layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector, layers.UpSampling1D), move),
    ((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D), move),
    (("Reshape", "Transpose", "Squeeze", "ExpandDims", "GetItem"), move),
    ((layers.AveragePooling1D, layers.AveragePooling2D), average),
    ((layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D), mean),
    ((layers.UpSampling2D,), upsample),
    (("Concatenate",), concatenate),
    (tuple(_ARITHMETIC), arithmetic),
    *attention.RULES,
    *recurrent.RULES,
]
