"""How activations, arithmetic and what is there for training only are rewritten."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

from tfopt.augment import AugmentationLayer
from tfopt.graph import Node, Ref
from tfopt.quantize.activation_layers import QuantizedActivation, QuantizedPReLU
from tfopt.quantize.activations import LINEAR as NONE
from tfopt.quantize.activations import Activation, activation_of, clip
from tfopt.quantize.activations import activation as activation_kind
from tfopt.quantize.arithmetic import QuantizedArithmetic
from tfopt.quantize.functions import FUNCTIONS
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported, is_float
from tfopt.quantize.rules_shape import otherwise

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
    "StochasticDepth",
    "StopGradient",
    AugmentationLayer,
    layers.AugMix,
    layers.CutMix,
    layers.MixUp,
    layers.RandAugment,
    layers.RandomBrightness,
    layers.RandomColorDegeneration,
    layers.RandomColorJitter,
    layers.RandomContrast,
    layers.RandomElasticTransform,
    layers.RandomErasing,
    layers.RandomFlip,
    layers.RandomGaussianBlur,
    layers.RandomGrayscale,
    layers.RandomHue,
    layers.RandomInvert,
    layers.RandomPerspective,
    layers.RandomPosterization,
    layers.RandomRotation,
    layers.RandomSaturation,
    layers.RandomSharpness,
    layers.RandomShear,
    layers.RandomTranslation,
    layers.RandomZoom,
)
# Raw operators of Keras have no public classes, so they go by the names of these.
_ARITHMETIC = {
    "Add": "add",
    "Subtract": "subtract",
    "Multiply": "multiply",
    "Maximum": "maximum",
    "Minimum": "minimum",
}


def training_only(rewrite: Rewrite, node: Node) -> None:
    """What training adds stays where it is; the grid is that of the input."""
    value = rewrite.values[node.inputs[0]]
    tensor = rewrite.copy_named(node)(value.tensor)
    in_float = None if value.in_float is None else tensor
    rewrite.values[node.outputs[0]] = dataclasses.replace(value, tensor=tensor, in_float=in_float)


def arithmetic(rewrite: Rewrite, node: Node) -> None:
    """An operator over tensors, or a tensor and a constant."""
    operands = _operands(node)
    constants = [each for each in operands if not isinstance(each, Ref)]
    if len(constants) > 1:
        raise Unsupported(f"{node.type} takes the arguments {constants}, which no integer kernel has")
    _arithmetic(rewrite, node, _ARITHMETIC[node.type], operands)


def divide(rewrite: Rewrite, node: Node) -> None:
    """By a constant: the product with its inverse."""
    dividend, divisor = _operands(node)
    if isinstance(divisor, Ref) or not isinstance(dividend, Ref) or not np.all(divisor):
        raise Unsupported("LiteRT divides integers by constants other than 0 only")
    _arithmetic(rewrite, node, "multiply", [dividend, 1.0 / divisor])


def power(rewrite: Rewrite, node: Node) -> None:
    """A square."""
    base, exponent = _operands(node)
    if isinstance(exponent, Ref) or np.ndim(exponent) or exponent != 2.0 or not isinstance(base, Ref):
        raise Unsupported(f"of powers only squares have a rule, not {exponent}")
    activate(rewrite, node.outputs[0], rewrite.quantized(base), activation_kind("square"), node.name)


def mean_of_layers(rewrite: Rewrite, node: Node) -> None:
    """layers.Average: a sum, then a product with 1 / n."""
    total = _made(rewrite, node, "add", node.inputs, f"{node.name}_sum")
    on_grid = rewrite.on_grid(total, f"{total._keras_history.operation.name}_quantize")
    made = QuantizedArithmetic("multiply", constant=1.0 / len(node.inputs), name=rewrite.unique(node.name))
    rewrite.put(node.outputs[0], made([on_grid]))


def add_scaled(rewrite: Rewrite, node: Node) -> None:
    """Inception-ResNet's x + scale * y."""
    first, second = node.inputs
    product = QuantizedArithmetic("multiply", node.operation.scale, name=rewrite.unique(f"{node.name}_product"))
    scaled = rewrite.on_grid(product([rewrite.quantized(second)]), f"{product.name}_quantize")
    made = QuantizedArithmetic("add", name=rewrite.unique(node.name))
    rewrite.put(node.outputs[0], made([rewrite.quantized(first), scaled]))


def _operands(node: Node) -> list[Any]:
    """What an operator takes, in order: tensors and arrays."""
    values = [*node.args, *node.kwargs.values()]
    if len(values) == 1:
        values = list(values[0])
    return [each if isinstance(each, Ref) else keras.ops.convert_to_numpy(each) for each in values]


def _arithmetic(rewrite: Rewrite, node: Node, operator: str, operands: list[Any]) -> None:
    output = node.outputs[0]
    constant = next((each for each in operands if not isinstance(each, Ref)), None)
    refs = [each for each in operands if isinstance(each, Ref)]
    if not any(is_float(rewrite.values[each].tensor) for each in refs):
        otherwise(rewrite, node)
    elif constant is not None and operator in ("maximum", "minimum"):
        if constant.ndim == 0:
            ends = (constant, None) if operator == "maximum" else (None, constant)
            _activation(rewrite, node, clip(*ends), refs[0])
        else:
            if rewrite.activation_bits != 8:
                raise Unsupported(f"there is no rule for {node.type} with an array and activations of 16 bits")
            # The larger or smaller of two has the scale of both.
            rewrite.requantize(output, _made(rewrite, node, operator, operands), refs[0], "rounded")
    else:
        rewrite.put(output, _made(rewrite, node, operator, operands))


def _made(rewrite: Rewrite, node: Node, operator: str, operands: list[Any], name: str | None = None) -> Any:
    constants = [each for each in operands if not isinstance(each, Ref)]
    made = QuantizedArithmetic(
        operator,
        constant=constants[0] if constants else None,
        constant_first=not isinstance(operands[0], Ref),
        count=len(operands),
        bits=rewrite.activation_bits,
        name=rewrite.unique(name or node.name),
    )
    tensors = {each: rewrite.quantized(each) for each in operands if isinstance(each, Ref)}
    if operator in ("maximum", "minimum"):
        tensors = {each: rewrite.rescalable(each, tensor) for each, tensor in tensors.items()}
    return made([tensors[each] for each in operands if isinstance(each, Ref)])


def activation(rewrite: Rewrite, node: Node) -> None:
    """An activation as a layer or operator of its own."""
    found = activation_of(node.operation)
    assert found is not None
    if len(node.inputs) > 1:
        raise Unsupported(f"there is no integer rule for {node.type} with a mask")
    if is_float(rewrite.values[node.inputs[0]].tensor):
        _activation(rewrite, node, found, node.inputs[0])
    else:
        otherwise(rewrite, node)


def _activation(rewrite: Rewrite, node: Node, found: Activation, source: Ref) -> None:
    output = node.outputs[0]
    if found == NONE:
        rewrite.values[output] = rewrite.values[source]
    elif found.kind not in ("clip", "limit"):
        activate(rewrite, output, rewrite.quantized(source), found, node.name)
    elif found.kind == "clip" and rewrite.is_unrounded(node, source):
        activate(rewrite, output, rewrite.values[source].tensor, found, node.name)
    elif found["low"] == 0.0:
        # Of two roundings in a row the converter drops one, and with it the ReLU that it stands for.
        relu = activation_kind("relu", negative_slope=0.0, threshold=0.0, max_value=found["high"])
        made = QuantizedActivation(relu.kind, dict(relu.options), name=rewrite.unique(node.name))
        rewrite.quantize(output, made(rewrite.quantized(source)), clip=(0.0, found["high"]))
    else:
        # The larger or smaller of a tensor and a constant has the tensor's scale.
        made = QuantizedActivation("limit", dict(found.options), name=rewrite.unique(node.name))
        rewrite.requantize(output, made(rewrite.quantized(source)), source, "rounded")


def prelu(rewrite: Rewrite, node: Node) -> None:
    """PReLU, whose slopes are trained."""
    layer = node.operation
    if rewrite.activation_bits != 8:
        raise Unsupported("LiteRT computes PReLU with activations of 8 bits only: use LeakyReLU, or activation_bits=8")
    made = rewrite.once(
        (id(layer), "prelu"), lambda: QuantizedPReLU(rewrite.copy(layer), name=rewrite.unique(node.name))
    )
    rewrite.put(node.outputs[0], made(rewrite.quantized(node.inputs[0])))


def activate(rewrite: Rewrite, output: Ref, tensor: Any, function: Activation, name: str) -> None:
    """Puts a tensor behind an activation, as `output` of the graph."""
    if function == NONE:
        rewrite.put(output, tensor)
    elif function.kind == "clip":
        follower = rewrite.graph.only_consumer(output)
        if function["low"] == 0.0 and follower is not None and follower.type == "Concatenate":
            rewrite.put(output, layers.ReLU(function["high"], name=rewrite.unique(name), dtype="float32")(tensor))
        else:
            rewrite.quantize(output, tensor, name, clip=(function["low"], function["high"]))
    else:
        function = _of_16_bits(function) if rewrite.activation_bits == 16 else function
        options = dict(function.options)
        made = QuantizedActivation(function.kind, options, rewrite.activation_bits, name=rewrite.unique(name))
        tensor = made(rewrite.on_grid(tensor, f"{name}_input"))
        behind = FUNCTIONS[function.kind].output(**options)
        rewrite.put(output, tensor)
        if behind:
            rewrite.quantize(output, tensor, **behind)


def _of_16_bits(function: Activation) -> Activation:
    """The activation in a form for which LiteRT has kernels of 16 bits."""
    if function.kind == "hard_silu":
        return activation_kind("hard_silu_in_parts")
    if function.kind == "log_softmax" or (function.kind == "relu" and function["threshold"]):
        raise Unsupported(
            f"LiteRT computes {'a ReLU with a threshold' if function.kind == 'relu' else function.kind} with "
            "activations of 8 bits only: replace it, or use activation_bits=8"
        )
    return function


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    (_TRAINING_ONLY, training_only),
    (tuple(_ARITHMETIC), arithmetic),
    (("Divide", "TrueDivide"), divide),
    (("Power",), power),
    ((layers.Average,), mean_of_layers),
    (("CustomScaleLayer",), add_scaled),
    ((layers.PReLU,), prelu),
]
