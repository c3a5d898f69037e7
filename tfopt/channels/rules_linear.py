"""What convolutions and dense layers do with channels."""

from typing import Any

import keras
import numpy as np

from tfopt.channels.costs import Term, positions
from tfopt.channels.propagate import Flow, Unknown
from tfopt.graph import Node

_ELEMENTWISE = (
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
    "tanh",
    "tanh_shrink",
)
_FUNCTIONS = {
    getattr(module, name) for module in (keras.activations, keras.ops) for name in _ELEMENTWISE if hasattr(module, name)
}
_ACTIVATION_LAYERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)


def is_elementwise(activation: Any) -> bool:
    """Whether an activation treats each channel for itself, as ReLU does and softmax does not.

    >>> is_elementwise(keras.activations.relu), is_elementwise(keras.activations.softmax)
    (True, False)
    """
    return activation is None or activation in _FUNCTIONS or type(activation) in _ACTIVATION_LAYERS


def dense(flow: Flow, node: Node) -> np.ndarray:
    """Dense: mixes all channels into new ones."""
    return _mix(flow, node, "units", filters=-1, inputs=-2, places=positions(node.outputs[0].shape))


def convolve(flow: Flow, node: Node) -> np.ndarray:
    """Conv1D, Conv2D, Conv3D, with groups too."""
    layer, ids = node.operation, flow.read(node)
    groups, places = layer.groups, _kernel_places(node, node.outputs[0].shape)
    if groups == 1:
        return _mix(flow, node, "filters", filters=-1, inputs=-2, places=places)
    _check_plain(node)
    if groups == len(ids):
        # Depthwise, written as ConvNeXt does.
        made = np.repeat(ids, layer.filters // groups)
        flow.slice(layer.kernel, -1, made)
        flow.count(node, "groups", ids)
        flow.macs.append(Term(places, (made,)))
    else:
        made = flow.produce(node, layer.kernel, -1)
        # Every group must lose the same.
        flow.ties.tie_across(ids, groups)
        flow.ties.tie_across(made, groups)
        each = ids[: len(ids) // groups]
        flow.slice(layer.kernel, -2, each)
        flow.macs.append(Term(places, (each, made)))
    flow.count(node, "filters", made)
    return _finish(flow, node, made)


def convolve_transposed(flow: Flow, node: Node) -> np.ndarray:
    """Conv1DTranspose, Conv2DTranspose, Conv3DTranspose: each input meets the whole kernel."""
    places = _kernel_places(node, node.inputs[0].shape)
    return _mix(flow, node, "filters", filters=-2, inputs=-1, places=places)


def convolve_depthwise(flow: Flow, node: Node) -> np.ndarray:
    """DepthwiseConv1D, DepthwiseConv2D: `depth_multiplier` channels of each."""
    _check_plain(node)
    layer, ids = node.operation, flow.read(node)
    made = np.repeat(ids, layer.depth_multiplier)
    flow.slice(layer.kernel, -2, ids)
    flow.macs.append(Term(_kernel_places(node, node.outputs[0].shape), (made,)))
    return _finish(flow, node, made)


def convolve_separable(flow: Flow, node: Node) -> np.ndarray:
    """SeparableConv1D, SeparableConv2D: depthwise, then a mix of all."""
    _check_plain(node)
    layer, ids = node.operation, flow.read(node)
    inner, made = np.repeat(ids, layer.depth_multiplier), flow.produce(node, layer.pointwise_kernel, -1)
    flow.slice(layer.depthwise_kernel, -2, ids)
    flow.slice(layer.pointwise_kernel, -2, inner)
    flow.count(node, "filters", made)
    shape = node.outputs[0].shape
    flow.macs += [Term(_kernel_places(node, shape), (inner,)), Term(positions(shape), (inner, made))]
    return _finish(flow, node, made)


def _mix(flow: Flow, node: Node, key: str, filters: int, inputs: int, places: int | None) -> np.ndarray:
    """A layer whose every output reads every input; `filters` and `inputs` are axes of its kernel."""
    _check_plain(node)
    ids, kernel = flow.read(node), node.operation.kernel
    made = flow.produce(node, kernel, filters)
    flow.slice(kernel, inputs, ids)
    flow.count(node, key, made)
    flow.macs.append(Term(places, (ids, made)))
    return _finish(flow, node, made)


def _finish(flow: Flow, node: Node, made: np.ndarray) -> np.ndarray:
    """Bias and activation."""
    layer = node.operation
    if layer.bias is not None:
        flow.slice(layer.bias, 0, made)
    if not is_elementwise(layer.activation):
        name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
        flow.ties.freeze(made, f"the activation {name} of {node.name} may read all channels at once")
    return made


def _check_plain(node: Node) -> None:
    layer = node.operation
    if getattr(layer, "lora_enabled", False):
        raise Unknown(f"{node.name} has LoRA weights, for which there is no rule: merge them first")
    if getattr(layer, "quantization_mode", None) is not None:
        raise Unknown(f"{node.name} is quantized by Keras; channels are pruned before that")


def _kernel_places(node: Node, shape: tuple[int | None, ...]) -> int | None:
    """Products for one input and one output channel."""
    places = positions(shape)
    return None if places is None else places * int(np.prod(node.operation.kernel_size))
