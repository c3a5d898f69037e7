"""LSTM, GRU and SimpleRNN with integers, unrolled; in both directions too."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfopt.graph import Node, Ref
from tfopt.quantize.activations import activation, by_function
from tfopt.quantize.arithmetic import QuantizedArithmetic
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.functions import FUNCTIONS
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported
from tfopt.quantize.unrolled import QuantizedRecurrent

# Each step is 12 operators for an LSTM, 14 for a GRU: some 2.6 KB of the file and a quarter of a second of export,
# whatever the units. At 64 steps that is as much as a float LSTM of 90 units saves by having integers; beyond it, the
# loop in float is the smaller file.
MAX_STEPS = 64

_CELLS = (layers.LSTM, layers.GRU, layers.SimpleRNN)
# Of hidden states.
_RANGE = FUNCTIONS["tanh"].output()


def recurrent(rewrite: Rewrite, node: Node) -> None:
    """An LSTM, GRU or SimpleRNN."""
    output = _unroll(rewrite, node, node.operation, node.name, _initial_states(node), node.outputs[1:])
    rewrite.quantize(node.outputs[0], output, **_RANGE)


def bidirectional(rewrite: Rewrite, node: Node) -> None:
    """A layer for each direction, and what merges their outputs."""
    both, initial, name = node.operation, _initial_states(node), node.name
    outputs = 2 if both.merge_mode is None else 1
    states = node.outputs[outputs:]
    parts = []
    for way, layer in enumerate((both.forward_layer, both.backward_layer)):
        tensor = _unroll(rewrite, node, layer, f"{name}_{layer.name}", _half(initial, way), _half(states, way))
        parts.append(rewrite.on_grid(tensor, f"{name}_{layer.name}_quantize", **_RANGE))
    if both.merge_mode is None:
        for ref, part in zip(node.outputs[:2], parts, strict=True):
            rewrite.put(ref, part, part._keras_history.operation)
    elif both.merge_mode == "concat":
        merge = layers.Concatenate(name=rewrite.unique(name))
        rewrite.quantize(node.outputs[0], merge(parts), **_RANGE)
    else:
        operator, bits = "multiply" if both.merge_mode == "mul" else "add", rewrite.activation_bits
        merged = QuantizedArithmetic(operator, bits=bits, name=rewrite.unique(name))(parts)
        if both.merge_mode == "ave":
            halve = QuantizedArithmetic("multiply", constant=0.5, bits=bits, name=rewrite.unique(f"{name}_half"))
            merged = halve([rewrite.on_grid(merged, f"{name}_sum")])
        rewrite.put(node.outputs[0], merged)


def _unroll(
    rewrite: Rewrite,
    node: Node,
    layer: layers.Layer,
    name: str,
    initial: Sequence[Ref],
    final: Sequence[Ref],
) -> keras.KerasTensor:
    """The layer's output in the new model; puts its `final` states where it gives them."""
    sequence, mask = node.inputs[0], _argument(node, 2, "mask")
    _check(rewrite, layer, sequence, mask, initial)

    def make() -> QuantizedRecurrent:
        return QuantizedRecurrent(
            rewrite.copy(layer, activity_regularizer=None),
            bits=rewrite.weight_bits(layer),
            activation_bits=rewrite.activation_bits,
            packed=rewrite.weight_bits.packed(layer),
            in_order=layer is not node.operation,
            activity_regularizer=layer.activity_regularizer,
            name=rewrite.unique(name),
        )

    made = rewrite.once((id(layer), "unrolled"), make)
    options: dict[str, Any] = {}
    if mask is not None:
        options["mask"] = rewrite.values[mask].tensor
    if initial:
        options["initial_state"] = [rewrite.quantized(each) for each in initial]
    output, *states = keras.tree.flatten(made(rewrite.quantized(sequence), **options))
    for ref, state, kind in zip(final, states, made.cell.kinds, strict=False):
        if kind == "tanh":
            rewrite.quantize(ref, state, **_RANGE)
        else:
            # It is on a grid; a second one, next to it, would be lost in the file.
            rewrite.put(ref, state, made.quantizers[kind])
    return output


def _half(items: Sequence[Ref], second: int) -> Sequence[Ref]:
    """The first or second half: what belongs to one direction."""
    middle = len(items) // 2
    return items[middle:] if second else items[:middle]


def _argument(node: Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _initial_states(node: Node) -> list[Ref]:
    """The tensors that a layer starts from: none where it starts from zeros."""
    return [each for each in keras.tree.flatten(_argument(node, 1, "initial_state")) if each is not None]


def _check(rewrite: Rewrite, layer: layers.Layer, sequence: Ref, mask: Ref | None, initial: Sequence[Ref]) -> None:
    """Raises Unsupported, with the reason, for what cannot be unrolled with integers."""
    steps = sequence.shape[1]
    if not isinstance(layer, _CELLS):
        raise Unsupported(f"there is no integer rule for the {type(layer).__name__} inside")
    if layer.stateful:
        raise Unsupported("it is stateful; give it its states as inputs, with initial_state and return_state=True")
    if steps is None:
        raise Unsupported(
            "its sequences have no fixed length, and with integers each step is computed by operators of its own; "
            "give keras.Input the number of steps"
        )
    if steps > MAX_STEPS:
        raise Unsupported(
            f"its sequences have {steps} steps; with integers each step is computed by operators of its own, for at "
            f"most {MAX_STEPS} steps"
        )
    for role, kind in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        function = getattr(layer, role, None)
        if hasattr(layer, role) and by_function(function) != activation(kind):
            raise Unsupported(f"its {role} is {getattr(function, '__name__', function)!r}, integers need {kind!r}")
    if initial and mask is not None:
        raise Unsupported("it has a mask and initial states at once")
    if isinstance(layer, layers.GRU) and not all(_is_hidden_state(rewrite, ref) for ref in initial):
        # What a GRU keeps of its first state must fit the range of what it computes.
        raise Unsupported(
            "its initial state may lie outside of -1 to 1: let it come from a GRU, an LSTM, or a tanh or sigmoid"
        )


def _is_hidden_state(rewrite: Rewrite, ref: Ref) -> bool:
    quantizer = rewrite.values[ref].quantizer
    return isinstance(quantizer, FakeQuant) and quantizer.fixed is not None and max(map(abs, quantizer.fixed)) <= 1.0


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    (_CELLS, recurrent),
    ((layers.Bidirectional,), bidirectional),
]
