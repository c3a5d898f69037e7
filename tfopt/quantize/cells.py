"""What happens in one step of a recurrent layer, with every result on a grid of integers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from keras import layers

from tfopt.quantize.functions import FUNCTIONS
from tfopt.quantize.steps import Steps

# Product(hidden state, number of the matrix, gate before it or None).
Product = Callable[[tf.Tensor, int, tf.Tensor | None], tf.Tensor]
Step = Callable[[tf.Tensor, list[tf.Tensor], Product, Mapping[str, Steps]], list[tf.Tensor]]

# Kinds of tensors, with their options as for `FakeQuant`. What a gate lets through has the grid of what came to it.
# Beyond +-8 a sigmoid, and beyond +-4 a tanh, changes by less than a fifth of a step of its result.
_KINDS: dict[str, Mapping[str, Any]] = {
    "inputs": {},
    "recurrent": {},
    "gates": {"clip": (-8.0, 8.0)},
    "candidate": {"clip": (-4.0, 4.0)},
    "cell": {},
    "sigmoid": FUNCTIONS["sigmoid"].output(),
    "tanh": FUNCTIONS["tanh"].output(),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """How a recurrent layer computes.

    Args:
      step: takes the step's share of the input product, the states, the product with the recurrent kernel and what
        rounds each kind of tensor; gives the new states, the hidden one first.
      kinds: the grid of each state, then the other kinds of tensors.
      states: how many states.
      matrices: into how many parts the recurrent kernel is cut.
    """

    step: Step
    kinds: tuple[str, ...]
    states: int = 1
    matrices: int = 1

    @property
    def options(self) -> dict[str, Mapping[str, Any]]:
        """By kind of tensor, the options of its quantizer."""
        return {kind: _KINDS[kind] for kind in self.kinds}


def cell_of(layer: layers.RNN) -> Cell:
    """The arithmetic of an LSTM, GRU or SimpleRNN.

    >>> cell_of(layers.LSTM(4)).states
    2
    """
    if isinstance(layer, layers.LSTM):
        return Cell(lstm_step, ("tanh", "cell", "inputs", "recurrent", "gates", "sigmoid"), states=2)
    if isinstance(layer, layers.SimpleRNN):
        return Cell(simple_step, ("tanh", "inputs", "recurrent", "candidate"))
    kinds = ("tanh", "inputs", "recurrent", "gates", "candidate", "sigmoid")
    return Cell(gru_step, kinds) if layer.reset_after else Cell(gru_step_reset_before, kinds, matrices=3)


def lstm_step(x: tf.Tensor, states: list[tf.Tensor], product: Product, on: Mapping[str, Steps]) -> list[tf.Tensor]:
    """One step of an LSTM.

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; Gers et al., Learning to Forget, 2000.
    """
    hidden, cell = states
    i, f, candidate, o = on["gates"].split(on["gates"](x + product(hidden, 0, None)), 4)
    i, f, o = (on["sigmoid"](tf.sigmoid(gate)) for gate in (i, f, o))
    new = on["tanh"](i * on["tanh"](tf.tanh(candidate)))
    cell = on["cell"](on["cell"].within(f * cell) + new)
    return [on["tanh"](o * on["tanh"](tf.tanh(cell))), cell]


def gru_step(x: tf.Tensor, states: list[tf.Tensor], product: Product, on: Mapping[str, Steps]) -> list[tf.Tensor]:
    """One step of a GRU that is reset after the product.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014, arXiv:1406.1078, version 1.
    """
    x_z, x_r, x_new = on["inputs"].split(x, 3)
    h_z, h_r, h_new = on["recurrent"].split(product(states[0], 0, None), 3)
    z, r = (on["sigmoid"](tf.sigmoid(on["gates"](total))) for total in (x_z + h_z, x_r + h_r))
    return [_mix(z, states[0], x_new + on["recurrent"].within(r * h_new), on)]


def gru_step_reset_before(
    x: tf.Tensor, states: list[tf.Tensor], product: Product, on: Mapping[str, Steps]
) -> list[tf.Tensor]:
    """One step of a GRU that is reset before the product.

    Source: as `gru_step`, version 3.
    """
    x_z, x_r, x_new = on["inputs"].split(x, 3)
    z, r = (
        on["sigmoid"](tf.sigmoid(on["gates"](part + product(states[0], i, None)))) for i, part in enumerate((x_z, x_r))
    )
    return [_mix(z, states[0], x_new + product(states[0], 2, r), on)]


def _mix(z: tf.Tensor, hidden: tf.Tensor, total: tf.Tensor, on: Mapping[str, Steps]) -> tf.Tensor:
    """The hidden state where z is 1, the candidate where it is 0."""
    candidate = on["tanh"](tf.tanh(on["candidate"](total)))
    new = on["tanh"](on["sigmoid"](1.0 - z) * candidate)
    return on["tanh"](on["tanh"](z * hidden) + new)


def simple_step(x: tf.Tensor, states: list[tf.Tensor], product: Product, on: Mapping[str, Steps]) -> list[tf.Tensor]:
    """One step of a simple recurrent layer."""
    return [on["tanh"](tf.tanh(on["candidate"](x + product(states[0], 0, None))))]
