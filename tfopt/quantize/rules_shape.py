"""How operations that move, choose, repeat or average values are rewritten."""

from typing import Any

import keras
from keras import layers

from tfopt.graph import Node, Ref
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported, is_float
from tfopt.quantize.upsample import QuantizedUpSampling2D


def move(rewrite: Rewrite, node: Node) -> None:
    """Pooling by the largest, padding, reshaping, splitting: the values' scale stays."""
    _same_scale(rewrite, node, "exact")


def average(rewrite: Rewrite, node: Node) -> None:
    """LiteRT's averages have the scale of their input."""
    _same_scale(rewrite, node, "averaged")


def _same_scale(rewrite: Rewrite, node: Node, again: str) -> None:
    args, kwargs = rewrite.arguments(node)
    results = keras.tree.flatten(rewrite.copy_named(node)(*args, **kwargs))
    for ref, tensor in zip(node.outputs, results, strict=True):
        rewrite.requantize(ref, tensor, node.inputs[0], again)


def pad(rewrite: Rewrite, node: Node) -> None:
    """ops.pad; a constant other than 0 is rounded to the tensor's grid."""
    _same_scale(rewrite, node, "rounded" if node.kwargs.get("constant_values") else "exact")


def upsample(rewrite: Rewrite, node: Node) -> None:
    """Repeats values, or makes averages of them."""
    layer = node.operation
    _check_interpolation(layer)
    if layer.interpolation != "nearest":
        _resize(rewrite, node)
        return
    made = rewrite.once(
        (id(layer), "upsample"), lambda: QuantizedUpSampling2D(rewrite.copy(layer), name=rewrite.unique(node.name))
    )
    tensor = made(rewrite.quantized(node.inputs[0]))
    rewrite.requantize(node.outputs[0], tensor, node.inputs[0], "exact")


def resize(rewrite: Rewrite, node: Node) -> None:
    """layers.Resizing and ops.image.resize."""
    _check_interpolation(node.operation)
    options = ("antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
    wanted = [option for option in options if getattr(node.operation, option)]
    if wanted:
        raise Unsupported(f"there is no integer rule for resizing with {', '.join(wanted)}")
    _resize(rewrite, node)


def _resize(rewrite: Rewrite, node: Node) -> None:
    _same_scale(rewrite, node, "exact" if node.operation.interpolation == "nearest" else "rounded")


def _check_interpolation(operation: Any) -> None:
    if operation.interpolation not in ("nearest", "bilinear"):
        raise Unsupported(f'LiteRT resizes with interpolation "nearest" or "bilinear", not "{operation.interpolation}"')


def new_scale(rewrite: Rewrite, node: Node) -> None:
    """Global averages, sums, products of matrices have a scale of their own."""
    operands = keras.tree.flatten([node.args, dict(node.kwargs)])
    if any(hasattr(each, "shape") and not isinstance(each, Ref) for each in operands):
        raise Unsupported(f"there is no integer rule for {node.type} with a constant: use a layer with weights")
    args, kwargs = rewrite.arguments(node)
    rewrite.put(node.outputs[0], rewrite.copy_named(node)(*args, **kwargs))


def dot(rewrite: Rewrite, node: Node) -> None:
    """layers.Dot."""
    if node.operation.normalize:
        raise Unsupported("there is no integer rule for Dot(normalize=True): LiteRT cannot divide integers")
    new_scale(rewrite, node)


def concatenate(rewrite: Rewrite, node: Node) -> None:
    """One quantizer behind it, none before it where it can be spared: all parts must have one scale."""
    parts = node.args[0] if node.args else next(iter(node.kwargs.values()))
    if not all(isinstance(each, Ref) for each in parts):
        raise Unsupported(f"there is no integer rule for {node.type} with constants")

    def new(value: Any) -> Any:
        return rewrite.rescalable(value, rewrite.operand(node, value)) if isinstance(value, Ref) else value

    args, kwargs = keras.tree.map_structure(new, (node.args, dict(node.kwargs)))
    rewrite.put(node.outputs[0], rewrite.copy_named(node)(*args, **kwargs))


def cast(rewrite: Rewrite, node: Node) -> None:
    """From one kind of float to another: all is float32 here."""
    value = rewrite.values[node.inputs[0]]
    if not is_float(value.tensor) or "float" not in keras.backend.standardize_dtype(node.operation.dtype):
        raise Unsupported("there is no integer kernel that makes floats of integers, or integers of floats")
    rewrite.values[node.outputs[0]] = value


def otherwise(rewrite: Rewrite, node: Node) -> None:
    """Integers and booleans stay what they are."""
    if not node.inputs or any(is_float(rewrite.values[each].tensor) for each in node.inputs):
        raise Unsupported(f"there is no integer rule for {node.type}")
    args, kwargs = rewrite.arguments(node)
    results = keras.tree.flatten(rewrite.copy_named(node)(*args, **kwargs))
    if any(is_float(each) for each in results):
        raise Unsupported(f"{node.type} makes floats of integers, which no integer kernel can")
    for ref, tensor in zip(node.outputs, results, strict=True):
        rewrite.put(ref, tensor)


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    ((layers.MaxPooling1D, layers.MaxPooling2D, layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D), move),
    ((layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector, layers.UpSampling1D), move),
    ((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D), move),
    (("Reshape", "Ravel", "Transpose", "Swapaxes", "Moveaxis", "Squeeze", "ExpandDims"), move),
    (("GetItem", "Slice", "Split", "ArraySplit", "Unstack"), move),
    (("Flip", "Roll", "Tile", "Repeat", "BroadcastTo", "Max", "Min", "Amax", "Amin", "MaxPool"), move),
    ((layers.AveragePooling1D, layers.AveragePooling2D, "AveragePool"), average),
    ((layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, "Mean", "Sum", "Matmul"), new_scale),
    ((layers.Dot,), dot),
    ((layers.UpSampling2D,), upsample),
    ((layers.Resizing, "Resize"), resize),
    (("Pad",), pad),
    (("Concatenate", "Stack"), concatenate),
    (("Cast",), cast),
]
