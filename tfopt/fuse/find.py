"""Which layers of a model can become one, and why others cannot."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Literal

import keras
from keras import layers

from tfopt.graph import Graph, Node

# Where a layer's kernel has its outputs, see `maths.scale_outputs`.
OUTPUTS = {
    layers.Dense: "last",
    layers.Conv1D: "last",
    layers.Conv2D: "last",
    layers.Conv3D: "last",
    layers.SeparableConv1D: "last",
    layers.SeparableConv2D: "last",
    layers.Conv1DTranspose: "last but one",
    layers.Conv2DTranspose: "last but one",
    layers.Conv3DTranspose: "last but one",
    layers.DepthwiseConv1D: "both",
    layers.DepthwiseConv2D: "both",
}
_READS_A_NORM = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)
_CHAINS = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Two layers, one behind the other, that become one.

    Args:
      kind: "after": a BatchNormalization goes into the layer before it. "before": into the layer behind it. "chain": a
        linear layer goes into the next one.
      gone: the layer that is no longer there.
      into: the layer that takes it up.
    """

    kind: Literal["after", "before", "chain"]
    gone: keras.layers.Layer
    into: keras.layers.Layer


def find(graph: Graph, kept: Collection[str]) -> tuple[list[Step], dict[str, str]]:
    """What can be fused now, no layer twice, and by layer's name the reason why something cannot.

    Args:
      graph: of the model.
      kept: paths of variables under a promise, which no chain may mix with others.
    """
    search = _Search(graph, kept)
    for node in graph.nodes:
        if isinstance(node.operation, layers.BatchNormalization):
            search.norm(node)
    # A chain that waits for a BatchNormalization is found in the next round.
    for node in graph.nodes:
        if _kind(node.operation, _CHAINS):
            search.chain(node)
    return search.steps, search.reasons


class _Search:
    def __init__(self, graph: Graph, kept: Collection[str]) -> None:
        self.graph, self.kept = graph, kept
        self.steps: list[Step] = []
        self.reasons: dict[str, str] = {}
        self._calls: dict[int, list[Node]] = {}
        for node in graph.nodes:
            self._calls.setdefault(id(node.operation), []).append(node)
        self._busy: set[int] = set()

    def norm(self, node: Node) -> None:
        """Fuses a BatchNormalization with the layer before it, or else the one behind it."""
        norm = node.operation
        if self._calls[id(norm)][0] is not node:
            return
        before, behind = self.graph.maker(node.inputs[0]), self.graph.only_consumer(node.outputs[0])
        reason = _unfit_norm(node)
        reasons = []
        if reason is None:
            reason = self._into_before(before, node)
            if reason is None:
                assert before is not None
                return self._add(Step("after", norm, before.operation))
            reasons.append(reason)
            reason = self._into_behind(node, behind)
            if reason is None:
                assert behind is not None
                return self._add(Step("before", norm, behind.operation))
        self.reasons[node.name] = "; ".join([*reasons, *([reason] if reason else [])])
        return None

    def chain(self, node: Node) -> None:
        """Fuses a linear layer with the one behind it."""
        first, behind = node.operation, self.graph.only_consumer(node.outputs[0])
        if self._calls[id(first)][0] is not node or behind is None or _is_not_linear(first):
            return
        second = behind.operation
        kind = _kind(first, _CHAINS)
        if _kind(second, _CHAINS) is not kind or self._pair(node, behind) is not None:
            return
        reason = _unfit(first) or _unfit(second) or _unfit_chain(first, second)
        promised = sorted({each.path for each in (first.kernel, second.kernel)} & set(self.kept))
        if reason is None and promised:
            reason = f"an earlier stage made a promise about {', '.join(promised)}, which the product would break"
        if reason is None:
            self._add(Step("chain", first, second))
        else:
            self.reasons[node.name] = f"it stays apart from {second.name!r}: {reason}"

    def _add(self, step: Step) -> None:
        ids = {id(step.gone), id(step.into)}
        if not ids & self._busy:
            self._busy |= ids
            self.steps.append(step)

    def _into_before(self, before: Node | None, node: Node) -> str | None:
        if before is None:
            return "it follows an input of the model"
        layer = before.operation
        if not _kind(layer, tuple(OUTPUTS)):
            return f"it follows {before.name!r} ({before.type}), which has no weights to take it up"
        if _is_not_linear(layer):
            return f"{before.name!r} has an activation of its own before it"
        return _wrong_axis(node, layer) or self._pair(before, node) or _unfit(layer)

    def _into_behind(self, node: Node, behind: Node | None) -> str | None:
        if behind is None:
            return "nothing else reads it alone"
        layer = behind.operation
        if not _kind(layer, _READS_A_NORM):
            return f"it is followed by {behind.name!r} ({behind.type}), which cannot take it up"
        if _is_padded(layer):
            return f"{behind.name!r} pads with zeros, which the normalization would have moved"
        if getattr(layer, "groups", 1) > 1:
            return f"{behind.name!r} is grouped"
        return _wrong_axis(node, layer) or self._pair(node, behind) or _unfit(layer)

    def _pair(self, first: Node, second: Node) -> str | None:
        """Why two operations are not always called one behind the other; None where they are."""
        ones, others = self._calls[id(first.operation)], self._calls[id(second.operation)]
        for one in ones:
            reader = self.graph.only_consumer(one.outputs[0])
            if reader is None:
                return f"what {first.name!r} makes is read elsewhere too"
            if reader.operation is not second.operation:
                return f"{first.name!r} is shared, and {reader.name!r} reads it elsewhere"
        return None if len(ones) == len(others) else f"{second.name!r} is shared, and reads other layers elsewhere"


def _kind(operation: Any, kinds: tuple[Any, ...]) -> Any:
    """The Keras layer that an operation computes as."""
    return next((each for each in kinds if isinstance(operation, each) and type(operation).call is each.call), None)


def outputs_of(layer: keras.layers.Layer) -> str:
    """Where a layer's kernel has its outputs."""
    kind = _kind(layer, tuple(OUTPUTS))
    assert kind is not None
    return OUTPUTS[kind]


def kernel_of(layer: keras.layers.Layer) -> keras.Variable:
    """The kernel that a BatchNormalization scales."""
    return layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel


def _is_not_linear(layer: Any) -> bool:
    return layer.activation is not keras.activations.linear


def _is_padded(layer: Any) -> bool:
    return getattr(layer, "padding", "valid") != "valid" and any(size > 1 for size in layer.kernel_size)


def _wrong_axis(node: Node, layer: Any) -> str | None:
    rank = len(node.inputs[0].shape)
    channels = 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else rank - 1
    axis = node.operation.axis
    return None if axis % rank == channels else f"it normalizes axis {axis}, where {layer.name!r} has no channels"


def _unfit_norm(node: Node) -> str | None:
    if type(node.operation).call is not layers.BatchNormalization.call:
        return f"it is a {node.type}, which computes in its own way"
    arguments = [*node.args[1:], *node.kwargs.values()]
    return (
        "it is called with training=True, so that it uses the batch"
        if any(each is True for each in arguments)
        else None
    )


def _unfit(layer: Any) -> str | None:
    """Why the weights of a layer must stay as they are."""
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return f"{layer.name!r} is quantized by Keras, or adapted by LoRA"
    for name in ("kernel_constraint", "pointwise_constraint", "depthwise_constraint", "bias_constraint"):
        if getattr(layer, name, None) is not None:
            return f"{layer.name!r} has a {name}, which other weights would break"
    if layer.activity_regularizer is not None:
        return f"{layer.name!r} has a penalty on what it makes"
    return None


def _unfit_chain(first: Any, second: Any) -> str | None:
    if not isinstance(first, layers.Dense):
        if first.groups > 1 or second.groups > 1:
            return "a convolution of them is grouped"
        if first.data_format != second.data_format:
            return "they have their channels on different axes"
        one, other = (max(each.kernel_size) == 1 and max(each.strides) == 1 for each in (first, second))
        if not one and not other:
            return "neither is a 1 x 1 convolution of stride 1"
        if not other and first.use_bias and _is_padded(second):
            return f"{second.name!r} pads with zeros, where {first.name!r} has added its bias"
    before = math.prod(first.kernel.shape) + math.prod(second.kernel.shape)
    window = math.prod(first.kernel.shape[:-2]) * math.prod(second.kernel.shape[:-2])
    after = window * first.kernel.shape[-2] * second.kernel.shape[-1]
    if after > before:
        return f"one layer would have {after:,} weights in its kernel, and cost more than the two with {before:,}"
    return None
