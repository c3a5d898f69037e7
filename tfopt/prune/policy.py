"""`pays_on_xnnpack`: the layers in which zeros can make LiteRT faster on a CPU."""

from collections.abc import Callable

import keras
from keras import layers

from tfopt.config import require
from tfopt.graph import Node, flatten

# What XNNPACK computes on sparse weights' own memory layout, and the operators of sums and products.
_BETWEEN = (
    layers.BatchNormalization,
    layers.ReLU,
    layers.Add,
    layers.Multiply,
    layers.Dropout,
    layers.ZeroPadding2D,
    layers.GlobalAveragePooling2D,
)
_ACTIVATIONS = ("linear", "relu", "relu6", "sigmoid", "hard_swish", "hard_silu", "hard_sigmoid")
_SUMS = ("Add", "Multiply", "Relu", "Relu6", "HardSilu", "HardSwish", "Identity")


def pays_on_xnnpack(model: keras.Model) -> Callable[[keras.Layer], bool]:
    """A predicate for `layers`: true of the 1 x 1 convolutions that XNNPACK computes faster when they are sparse.

    XNNPACK has sparse kernels for float32 files, for 1 x 1 convolutions between a first 3 x 3 convolution of stride 2
    on an image of three channels and a global average pooling, with nothing between that needs another memory layout.
    It takes them from about 70 % zeros on, on ARM, and on x86 without AVX only: measure before you promise. Elsewhere
    zeros cut the compressed file, whatever the layer.

    Args:
      model: a built functional or Sequential model.

    Raises:
      ValueError: the model is not of that kind; names the layer that stands in the way.

    Source: Elsen et al., Fast Sparse ConvNets, 2020, arXiv:1911.09723; TFMOT's `PruneForLatencyOnXNNPack`.

    >>> net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(8, 3, 2), layers.Conv2D(4, 1, name="point")])
    >>> net.add(layers.GlobalAveragePooling2D())
    >>> [layer.name for layer in net.layers if pays_on_xnnpack(net)(layer)]
    ['point']
    """
    graph = flatten(model)
    first = next((node for node in graph.nodes if _is_start(node)), None)
    require(
        first is not None,
        f"{model.name!r} does not begin with a 3 x 3 convolution of stride 2 on three channels, from which XNNPACK's "
        "sparse kernels start: choose layers by name where zeros are for the size alone",
    )
    reached = {each.key for node in (first,) if node for each in node.outputs}
    chosen: set[int] = set()
    for node in graph.nodes:
        if not any(ref.key in reached for ref in node.inputs):
            continue
        require(
            _is_known(node),
            f"{node.name} ({node.type}) stands between the first convolution and the global average pooling of "
            f"{model.name!r}, and has no sparse memory layout in XNNPACK: choose layers by name where zeros are for "
            "the size alone",
        )
        if _is_point(node):
            chosen.add(id(node.operation))
        # What follows the pooling is no image any more.
        if not isinstance(node.operation, layers.GlobalAveragePooling2D):
            reached.update(each.key for each in node.outputs)
    require(bool(chosen), f"{model.name!r} has no 1 x 1 convolution behind its first one")
    return lambda layer: id(layer) in chosen


def _is_start(node: Node) -> bool:
    layer = node.operation
    is_first = isinstance(layer, layers.Conv2D) and layer.kernel_size == (3, 3) and layer.strides == (2, 2)
    return is_first and node.inputs[0].shape[-1] == 3


def _is_point(node: Node) -> bool:
    layer = node.operation
    plain = isinstance(layer, layers.Conv2D) and not isinstance(layer, layers.DepthwiseConv2D)
    return plain and layer.kernel_size == (1, 1) and layer.strides == (1, 1) and layer.groups == 1


def _is_known(node: Node) -> bool:
    layer = node.operation
    if isinstance(layer, layers.DepthwiseConv2D):
        return layer.kernel_size in ((3, 3), (5, 5)) and keras.activations.serialize(layer.activation) in _ACTIVATIONS
    if isinstance(layer, layers.Activation | layers.Conv2D):
        is_plain = not isinstance(layer, layers.Conv2D) or _is_point(node)
        return is_plain and keras.activations.serialize(layer.activation) in _ACTIVATIONS
    return isinstance(layer, _BETWEEN) or node.type in _SUMS
