"""`Rewrite`: turns the flat graph of a float model into a quantization-aware Keras model, node by node."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfopt.graph import Graph, Node, Ref
from tfopt.quantize.arithmetic import QuantizedArithmetic
from tfopt.quantize.bits import WeightBits
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.island import FloatIsland
from tfopt.quantize.layer import Unmasked
from tfopt.quantize.steps import StepQuant

_NEXT_TO_1 = float(np.nextafter(np.float32(1), np.float32(2)))


class Unsupported(ValueError):
    """A node has no rule; the message is the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the new model, and the quantizer that put it on a grid: None where nothing has yet.

    `in_float`: what a layer that stays in float made of it, unrounded; None where it comes from another.
    """

    tensor: keras.KerasTensor
    quantizer: FakeQuant | None = None
    in_float: keras.KerasTensor | None = None


Rule = Callable[["Rewrite", Node], None]


class Rewrite:
    """The new model while it is made; what the rules work with.

    A producer leaves its output as it is; the consumer that needs integers asks for them with `quantized`. So a
    convolution, its ReLU and the rounding meet in one place without looking ahead.

    Args:
      graph: of the float model.
      weight_bits: by layer.
      activation_bits: 8 or 16.
      output_names: of the model's outputs: in compile() and in the file they stay what they were.
    """

    def __init__(
        self,
        graph: Graph,
        weight_bits: WeightBits,
        activation_bits: int,
        output_names: Sequence[str],
    ) -> None:
        self.graph, self.weight_bits, self.activation_bits = graph, weight_bits, activation_bits
        self.values: dict[Ref, Value] = {}
        self._copies: list[tuple[keras.layers.Layer, Sequence[keras.layers.Layer]]] = []
        # Operations that are part of an earlier node's layer by now.
        self.absorbed: set[Node] = set()
        self._made: dict[Any, Any] = {}
        self._behind_floats: list[FakeQuant | None] = []
        self.output_names = output_names
        self._names = set(output_names)

    def run(self, rule_for: Callable[[Node], Rule], on_unsupported: Callable[[Node, str], None]) -> None:
        """Applies a rule to every node; where there is none, hands the node on with the reason."""
        for node in self.graph.nodes:
            if node in self.absorbed:
                continue
            try:
                rule_for(node)(self, node)
            except Unsupported as error:
                on_unsupported(node, str(error))

    def put(
        self, ref: Ref, tensor: keras.KerasTensor, quantizer: FakeQuant | None = None, unrounded: bool = False
    ) -> None:
        """Says what a tensor of the graph is in the new model; `unrounded`: layers in float read it as it is."""
        producer = self.graph.maker(ref)
        if producer and not isinstance(producer.operation, keras.layers.Layer) and mask_of(tensor) is not None:
            # A raw operator loses the mask of a sequence, the layer that stands for it here would pass it on.
            tensor = Unmasked(name=self.unique(f"{producer.name}_unmasked"))(tensor)
        self.values[ref] = Value(tensor, quantizer, tensor if unrounded else None)

    def keep_float(self, node: Node, reason: str) -> None:
        """Leaves a node in float: what it reads is dequantized before it in the file."""
        # Whether it trains is known by each call, not by the graph.
        given = [node.args, {name: value for name, value in node.kwargs.items() if name != "training"}]
        places = [i for i, each in enumerate(keras.tree.flatten(given)) if isinstance(each, Ref)]
        arguments = keras.tree.map_structure(lambda each: 0 if isinstance(each, Ref) else each, given)

        def make() -> FloatIsland:
            return FloatIsland(self.copy(node.operation), reason, name=self.unique(node.name))

        island = self.once((id(node.operation), "float"), make)
        unrounded = [self.values[ref].in_float for ref in node.inputs]
        tensors = [
            self.quantized(ref) if tensor is None else tensor
            for ref, tensor in zip(node.inputs, unrounded, strict=True)
        ]
        rounded = [i for i, tensor in enumerate(unrounded) if tensor is None]
        outputs = keras.tree.flatten(island(tensors, arguments=arguments, places=places, rounded=rounded))
        for ref, tensor in zip(node.outputs, outputs, strict=True):
            self.values[ref] = Value(tensor, in_float=tensor)

    def rescalable(self, ref: Ref, tensor: keras.KerasTensor) -> keras.KerasTensor:
        """The tensor of `ref` for an operator that brings several to one scale.

        The converter can give another scale to what an integer operator made, not to what was float and rounded: such
        a tensor comes behind a product with 1, or what the converter does not remove as that.
        """
        value = self.values[ref]
        if value.in_float is None and not any(value.quantizer is each for each in self._behind_floats):
            return tensor
        maker = self.graph.maker(ref)
        assert maker is not None
        product = QuantizedArithmetic("multiply", constant=_NEXT_TO_1, name=self.unique(f"{maker.name}_rescale"))
        return product([self.quantized(ref)])

    def skip(self, node: Node) -> None:
        """Passes over a node, so that all that cannot be rewritten is found before it is told."""
        for ref in node.outputs:
            self.put(ref, keras.Input(batch_shape=ref.shape))

    def quantized(self, ref: Ref) -> keras.KerasTensor:
        """The tensor on a grid of integers; integer tensors as they are."""
        value = self.values[ref]
        if value.quantizer is None and is_float(value.tensor):
            self.quantize(ref, value.tensor)
            if value.in_float is not None:
                self.values[ref] = dataclasses.replace(self.values[ref], in_float=value.in_float)
                self._behind_floats.append(self.values[ref].quantizer)
        return self.values[ref].tensor

    def is_unrounded(self, node: Node, ref: Ref) -> bool:
        """Whether nothing has rounded a tensor, and nothing but `node` reads it."""
        return self.graph.only_consumer(ref) is node and self.values[ref].quantizer is None

    def operand(self, node: Node, ref: Ref) -> keras.KerasTensor:
        """The tensor as it is where only `node` reads it, which then rounds for both; else on a grid."""
        return self.values[ref].tensor if self.graph.only_consumer(ref) is node else self.quantized(ref)

    def quantize(self, ref: Ref, tensor: keras.KerasTensor, name: str | None = None, **options: Any) -> None:
        """Puts a tensor behind a new quantizer. Args as for `FakeQuant`."""
        producer = self.graph.maker(ref)
        made_by = producer.name if producer else tensor._keras_history.operation.name
        is_output = ref in self.graph.outputs and not self.graph.consumers(ref)
        assert not isinstance(tensor._keras_history.operation, FakeQuant), "of two in a row the converter drops one"
        quantizer = self._quantizer(name or f"{made_by}_quantize", is_output=is_output, **options)
        self.put(ref, quantizer(tensor), quantizer)

    def on_grid(self, tensor: keras.KerasTensor, name: str, **options: Any) -> keras.KerasTensor:
        """The tensor behind a new quantizer, unless one made it. Options as for `FakeQuant`."""
        if isinstance(tensor._keras_history.operation, FakeQuant):
            return tensor
        return self._quantizer(name, **options)(tensor)

    def _quantizer(self, name: str, **options: Any) -> FakeQuant:
        return FakeQuant(bits=self.activation_bits, name=self.unique(name), **options)

    def requantize(self, ref: Ref, tensor: keras.KerasTensor, source: Ref, again: str) -> None:
        """Says that a tensor has the scale of `source`. `again` as for `FakeQuant.call`."""
        quantizer = self.values[source].quantizer
        if isinstance(quantizer, StepQuant):
            raise Unsupported("it moves a cell state, whose range belongs to the layer that makes it")
        self.put(ref, quantizer(tensor, again=again) if quantizer else tensor, quantizer)

    def outputs(self) -> list[keras.KerasTensor]:
        """The outputs of the new model, each from a layer with the name that it had."""
        tensors = [self.quantized(ref) for ref in self.graph.outputs]
        named = []
        for name, tensor in zip(self.output_names, tensors, strict=True):
            layer = self.once(("output", name), functools.partial(keras.layers.Identity, name=name))
            named.append(layer(tensor))
        return named

    def arguments(self, node: Node) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """A node's arguments with the new tensors, on grids, in place of its references."""

        def new(value: Any) -> Any:
            return self.quantized(value) if isinstance(value, Ref) else value

        return keras.tree.map_structure(new, (node.args, dict(node.kwargs)))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call with this key: layers that are shared stay shared."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def copy(self, layer: keras.Operation, **changes: Any) -> Any:
        """A copy of a layer or raw operator in float32, once for each layer; its variables follow at the end."""

        def make() -> Any:
            if isinstance(layer, keras.layers.Lambda):
                # Its function is code, which Keras does not make from a configuration; it has no weights.
                return layer
            config = {**layer.get_config(), **changes}
            if not isinstance(layer, keras.layers.Layer):
                return layer.__class__.from_config(config)
            copied = layer.__class__.from_config({**config, "dtype": "float32"})
            self.hand_over(layer, copied)
            return copied

        return self.once((id(layer), tuple(sorted(changes))), make)

    def hand_over(self, layer: keras.layers.Layer, *parts: keras.layers.Layer) -> None:
        """Says which new layers get the variables of a float layer, in their order, once all are built."""
        self._copies.append((layer, parts))

    def copy_variables(self) -> dict[str, str]:
        """Copies the variables of the float layers.

        Returns:
          The new path of each, by its old one.
        """
        renamed = {}
        for layer, parts in self._copies:
            new = [variable for part in parts for variable in part.weights]
            for old, copied in zip(layer.weights, new, strict=True):
                copied.assign(old)
                renamed[old.path] = copied.path
            for part in parts:
                # A Normalization computes from constants that it makes of its variables.
                if isinstance(part, keras.layers.Normalization):
                    part.finalize_state()
        return renamed

    def copy_named(self, node: Node, **changes: Any) -> Any:
        """A copy that stands in the new model under the node's name."""
        operation = node.operation
        if not isinstance(operation, keras.layers.Layer):
            return self.copy(operation, **changes)
        name = self.once((id(operation), "name"), lambda: self.unique(node.name))
        return self.copy(operation, name=name, **changes)

    def unique(self, name: str) -> str:
        """The name, after "encoder/" as "encoder_" and with a number where another layer has it."""
        plain = name.split("/")[-1]
        joined = f"{plain}_quantized" if plain in self.output_names else name.replace("/", "_")
        candidates = (plain, joined, *(f"{plain}_{i}" for i in range(1, len(self._names) + 2)))
        chosen = next(each for each in candidates if each not in self._names)
        self._names.add(chosen)
        return chosen


def is_float(tensor: keras.KerasTensor) -> bool:
    """Whether a tensor holds floats."""
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def mask_of(tensor: keras.KerasTensor) -> Any:
    """The mask that Keras attached to a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)
