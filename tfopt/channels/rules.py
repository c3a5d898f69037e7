"""What every other operation does with channels, and which rule is for which. What is not listed here is unknown."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfopt.channels import rules_linear
from tfopt.channels.propagate import Flow, Unknown
from tfopt.channels.rules_linear import is_elementwise
from tfopt.graph import Node, Ref

Rule = Callable[[Flow, Node], np.ndarray]


def rule_for(node: Node) -> Rule:
    """The rule for a node.

    Raises:
      Unknown: there is none.
    """
    operation = node.operation
    # An operator's may be None, for the one that Keras is set to.
    layout = getattr(operation, "data_format", "channels_last") or keras.config.image_data_format()
    if layout == "channels_first":
        raise Unknown(f"{node.name} has data_format='channels_first': build the model channels last")
    rules = LAYERS if isinstance(operation, keras.layers.Layer) else OPERATORS
    # A class of another's may do anything under the same name.
    is_keras = type(operation).__module__.partition(".")[0] == "keras"
    if not is_keras or node.type not in rules:
        raise Unknown(f"for {node.name} ({node.type}) there is no rule")
    return rules[node.type]


def same(flow: Flow, node: Node) -> np.ndarray:
    """Each channel for itself."""
    return flow.read(node)


def activate(flow: Flow, node: Node) -> np.ndarray:
    """The layer Activation."""
    return flow.read(node) if is_elementwise(node.operation.activation) else all_at_once(flow, node)


def all_at_once(flow: Flow, node: Node) -> np.ndarray:
    """Softmax and other activations that read all channels at once: they stay."""
    ids, reason = flow.read(node), f"{node.name} ({node.type}) may read all its channels at once"
    if len(ids) != node.outputs[0].shape[-1]:
        raise Unknown(reason)
    flow.ties.freeze(ids, reason)
    return ids


def drop(flow: Flow, node: Node) -> np.ndarray:
    """Dropout, unless the shape of its noise names the channels."""
    shape = getattr(node.operation, "noise_shape", None)
    if shape is not None and shape[-1] not in (1, None):
        raise Unknown(f"the noise_shape of {node.name} names the channels: give it None or 1 there")
    return flow.read(node)


def elementwise(flow: Flow, node: Node) -> np.ndarray:
    """Sums, products and the like: what meets stays or goes together; one channel for all is free."""
    width = node.outputs[0].shape[-1]
    if not isinstance(node.operation, keras.layers.Layer):
        constants = [each for each in (*node.args, *node.kwargs.values()) if not isinstance(each, Ref)]
        if any(np.shape(each)[-1:] not in ((), (1,)) for each in constants):
            raise Unknown(f"{node.name} ({node.type}) has a constant for each channel: use a layer with a weight")
    wide = [ids for ids in flow.read_all(node) if len(ids) == width]
    if not wide:
        raise Unknown(f"{node.name} ({node.type}) makes more channels than it reads")
    for other in wide[1:]:
        flow.ties.tie(wide[0], other)
    return wide[0]


def concatenate(flow: Flow, node: Node) -> np.ndarray:
    """One behind the other along the channels; along another axis, all have the same."""
    parts, rank = flow.read_all(node), len(node.outputs[0].shape)
    given = [*node.args, *node.kwargs.values()][0]
    if len(given) != len(parts):
        raise Unknown(f"{node.name} ({node.type}) reads a constant, for which there is no rule")
    if node.operation.axis % rank == rank - 1:
        return np.concatenate(parts)
    for other in parts[1:]:
        flow.ties.tie(parts[0], other)
    return parts[0]


def reshape(flow: Flow, node: Node) -> np.ndarray:
    """Where the last axis stays, or becomes several times as long: row by row, all channels again and again."""
    ids, last = flow.read(node), node.outputs[0].shape[-1]
    if last and last % len(ids) == 0:
        made = np.tile(ids, last // len(ids))
    elif last and len(ids) % last == 0 and np.all(ids.reshape(-1, last) == ids[:last]):
        # What was flattened gets its shape back.
        made = ids[:last]
    else:
        raise Unknown(f"{node.name} ({node.type}) takes the channels apart")

    def fewer(shape: Any, keep: np.ndarray) -> Any:
        return shape if shape[-1] == -1 else (*shape[:-1], int(np.count_nonzero(keep[made])))

    for key in ("target_shape", "newshape"):
        if isinstance(getattr(node.operation, key, None), list | tuple):
            flow.edit(node, key, fewer)
    return made


def permute(flow: Flow, node: Node) -> np.ndarray:
    """Where the last axis stays the last."""
    operation, rank = node.operation, len(node.outputs[0].shape)
    # Keras counts the axes of the layer from 1, those of the operator from the batch on: the last is the same.
    order = operation.dims if isinstance(operation, keras.layers.Permute) else operation.axes
    if order is None or order[-1] % rank != rank - 1:
        raise Unknown(f"{node.name} ({node.type}) moves the channels to another axis")
    return flow.read(node)


def reduce(flow: Flow, node: Node) -> np.ndarray:
    """Means, sums, greatest and least values over other axes."""
    ids, axis, rank = flow.read(node), node.operation.axis, len(node.inputs[0].shape)
    axes = range(rank) if axis is None else np.atleast_1d(axis)
    if any(each % rank == rank - 1 for each in axes):
        raise Unknown(f"{node.name} ({node.type}) reads all channels at once")
    return ids


def normalize(flow: Flow, node: Node) -> np.ndarray:
    """BatchNormalization, LayerNormalization, RMSNormalization: weights for each channel."""
    layer, ids, rank = node.operation, flow.read(node), len(node.outputs[0].shape)
    axes = [each % rank for each in np.atleast_1d(layer.axis)]
    if rank - 1 in axes:
        for variable in layer.weights:
            flow.slice(variable, axes.index(rank - 1), ids)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.scale:
            flow.gains.append((layer.gamma, ids))
    return ids


def normalize_groups(flow: Flow, node: Node) -> np.ndarray:
    """GroupNormalization: every group must lose the same."""
    layer, ids, rank = node.operation, flow.read(node), len(node.outputs[0].shape)
    if layer.axis % rank != rank - 1:
        raise Unknown(f"{node.name} ({node.type}) makes groups along another axis than the channels")
    if layer.groups == len(ids):
        flow.count(node, "groups", ids)
    else:
        flow.ties.tie_across(ids, layer.groups)
    for variable in layer.weights:
        flow.slice(variable, 0, ids)
    return ids


def slopes(flow: Flow, node: Node) -> np.ndarray:
    """PReLU."""
    ids, alpha = flow.read(node), node.operation.alpha
    if alpha.shape[-1] == len(ids):
        flow.slice(alpha, -1, ids)
    return ids


def layer_scale(flow: Flow, node: Node) -> np.ndarray:
    """ConvNeXt's LayerScale."""
    ids = flow.read(node)
    flow.slice(node.operation.gamma, 0, ids)
    flow.count(node, "projection_dim", ids)
    return ids


def rescale(flow: Flow, node: Node) -> np.ndarray:
    """Rescaling, by numbers or by one for each channel."""
    ids = flow.read(node)
    for key in ("scale", "offset"):
        if np.shape(getattr(node.operation, key))[-1:] == (len(ids),):
            flow.edit(node, key, lambda value, keep: np.asarray(value)[..., keep[ids]].tolist())
    return ids


def limit(flow: Flow, node: Node) -> np.ndarray:
    """Clip, between two numbers."""
    if np.size(node.operation.x_min) > 1 or np.size(node.operation.x_max) > 1:
        raise Unknown(f"{node.name} ({node.type}) has a limit for each channel")
    return flow.read(node)


def pad(flow: Flow, node: Node) -> np.ndarray:
    """Pad, along other axes."""
    if np.any(np.broadcast_to(node.operation.pad_width, (len(node.inputs[0].shape), 2))[-1]):
        raise Unknown(f"{node.name} ({node.type}) adds channels")
    return flow.read(node)


def index(flow: Flow, node: Node) -> np.ndarray:
    """x[:, 0] and the like."""
    key = node.args[1] if len(node.args) > 1 else node.kwargs["key"]
    keys = key if isinstance(key, tuple) else (key,)
    if len(keys) >= len(node.inputs[0].shape) or not all(isinstance(each, slice | int) for each in keys):
        raise Unknown(f"{node.name} ({node.type}) may take channels out")
    return flow.read(node)


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


LAYERS: dict[str, Rule] = {
    "Dense": rules_linear.dense,
    **_named(rules_linear.convolve, "Conv1D Conv2D Conv3D"),
    **_named(rules_linear.convolve_transposed, "Conv1DTranspose Conv2DTranspose Conv3DTranspose"),
    **_named(rules_linear.convolve_depthwise, "DepthwiseConv1D DepthwiseConv2D"),
    **_named(rules_linear.convolve_separable, "SeparableConv1D SeparableConv2D"),
    **_named(normalize, "BatchNormalization LayerNormalization RMSNormalization"),
    "GroupNormalization": normalize_groups,
    "PReLU": slopes,
    "LayerScale": layer_scale,
    "Rescaling": rescale,
    "Activation": activate,
    "Softmax": all_at_once,
    **_named(elementwise, "Add Subtract Multiply Maximum Minimum Average CustomScaleLayer"),
    "Concatenate": concatenate,
    **_named(reshape, "Reshape Flatten"),
    "Permute": permute,
    **_named(drop, "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout AlphaDropout"),
    **_named(same, "ReLU LeakyReLU ELU Identity GaussianNoise StochasticDepth ActivityRegularization RepeatVector"),
    **_named(same, "MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D"),
    **_named(same, "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D"),
    **_named(same, "GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D Resizing"),
    **_named(same, "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D"),
    **_named(same, "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D"),
    **_named(same, "ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D"),
    **_named(same, "UpSampling1D UpSampling2D UpSampling3D"),
}
# Raw operators have no public classes, so they go by the names of these.
OPERATORS: dict[str, Rule] = {
    **_named(elementwise, "Add Subtract Multiply Divide DivideNoNan TrueDivide Maximum Minimum Power"),
    "Concatenate": concatenate,
    **_named(reshape, "Reshape ExpandDims Squeeze"),
    "Transpose": permute,
    **_named(reduce, "Mean Sum Max Min Amax Amin"),
    "Clip": limit,
    **_named(all_at_once, "Softmax LogSoftmax"),
    "Pad": pad,
    "GetItem": index,
    **_named(same, "MaxPool AveragePool AdaptiveMaxPool AdaptiveAveragePool Resize Cast StopGradient"),
    **_named(same, "Abs Absolute Negative Square Sqrt Rsqrt Reciprocal Exp Expm1 Log Log1p Sign Round Floor Ceil Erf"),
    **_named(
        same, "Relu Relu6 LeakyRelu Elu Selu Celu Gelu Silu HardSilu Sigmoid HardSigmoid LogSigmoid Tanh HardTanh"
    ),
    **_named(same, "TanhShrink SoftShrink HardShrink Threshold Softplus Softsign Squareplus SparsePlus SparseSigmoid"),
    **_named(same, "Sin Cos Tan Arctan Sinh Cosh"),
}
