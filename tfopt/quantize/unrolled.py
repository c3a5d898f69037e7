"""`QuantizedRecurrent`: an LSTM, GRU or simple recurrent layer with integers, step after step."""

import contextlib
from typing import Any

import keras
import tensorflow as tf

from tfopt.quantize.cells import cell_of
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.matrix import IntegerMatrix, integer_matrix, multiply, rounded_matrix
from tfopt.quantize.steps import StepQuant, Steps


@keras.saving.register_keras_serializable("tfopt")
class QuantizedRecurrent(QuantizedLayer):
    """A recurrent layer whose steps are laid out one after the other, in training as in the file.

    All steps multiply by the same integers and round to the same grids, one for each kind of tensor. The inputs of all
    steps are multiplied by their kernel at once.

    Args:
      layer: an LSTM, GRU or SimpleRNN with tanh and sigmoid; its `return_sequences`, `return_state` and
        `go_backwards` hold.
      bits: of the weights, 2 to 8.
      activation_bits: of the tensors, 8 or 16.
      packed: whether the file holds 4 bits as such, and not in int8.
      in_order: give a sequence of outputs in the order of the inputs, even where they are read backwards.

    >>> layer = QuantizedRecurrent(keras.layers.LSTM(4, return_sequences=True))
    >>> layer(tf.ones((2, 3, 5))).shape
    TensorShape([2, 3, 4])
    """

    def __init__(
        self,
        layer: Any,
        bits: int = 8,
        activation_bits: int = 8,
        packed: bool = True,
        in_order: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.layer, self.bits, self.activation_bits = layer, bits, activation_bits
        self.packed, self.in_order = packed, in_order
        # The layer only holds the weights; what it calls itself, and XLA could not compile, is not called.
        layer.supports_jit = True
        self.cell = cell_of(layer)
        self.quantizers = {
            kind: StepQuant(bits=activation_bits, name=f"{self.name}_{kind}", **options)
            for kind, options in self.cell.options.items()
        }
        self.frozen: tuple[IntegerMatrix, list[IntegerMatrix]] | None = None

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        """Builds the layer inside and the quantizers."""
        if not self.layer.built:
            self.layer.build(sequences_shape)
        for quantizer in self.quantizers.values():
            quantizer.build(None)

    def compute_output_shape(self, sequences_shape: Any, initial_state_shape: Any = None) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(sequences_shape)

    def compute_mask(self, sequences: Any, previous_mask: Any) -> Any:
        """The layer's."""
        return self.layer.compute_mask(sequences, previous_mask)

    def call(self, sequences: tf.Tensor, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
        """The layer.

        Args:
          sequences: float tensor of shape (batch, steps, features).
          initial_state: tensors of shape (batch, units), hidden and cell state; None: zeros.
          mask: bool of shape (batch, steps): where it is False the states stay as they are; None: all True.
          training: watch ranges too.
        """
        (kernel, bias), recurrent = self._matrices()
        sequences, dropout = self._drop_out(sequences) if training else (sequences, None)
        with contextlib.ExitStack() as stack:
            on = {kind: stack.enter_context(each.sequence(training)) for kind, each in self.quantizers.items()}
            zeros, nothing = self._zeros(on), self._product_of_zeros(on, recurrent)

            def product(hidden: tf.Tensor, index: int, gate: tf.Tensor | None) -> tf.Tensor:
                if hidden is zeros[0]:
                    return nothing[index] if gate is None else on["recurrent"].within(gate * nothing[index])
                hidden = hidden if dropout is None else hidden * dropout
                hidden = hidden if gate is None else on["tanh"](gate * hidden)
                return on["recurrent"](multiply(hidden, *recurrent[index]))

            steps = on["inputs"].again(tf.unstack(on["inputs"](multiply(sequences, kernel, bias)), axis=1))
            masks = [None] * len(steps) if mask is None else tf.unstack(mask[..., None], axis=1)
            states, outputs = initial_state or zeros, []
            for index in reversed(range(len(steps))) if self.layer.go_backwards else range(len(steps)):
                before, keep = states, masks[index]
                states = self.cell.step(steps[index], before, product, on)
                if keep is not None:
                    kinds = zip(self.cell.kinds, states, before, strict=False)
                    states = [on[kind].where(keep, new, old) for kind, new, old in kinds]
                is_blank = keep is not None and self.layer.zero_output_for_mask
                outputs.append(on["tanh"].where(keep, states[0], zeros[0]) if is_blank else states[0])
        result = outputs[-1]
        if self.layer.return_sequences:
            result = tf.stack(outputs[::-1] if self.in_order and self.layer.go_backwards else outputs, axis=1)
        return (result, *states) if self.layer.return_state else result

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        own = {key: getattr(self, key) for key in ("bits", "activation_bits", "packed", "in_order")}
        return {**super().get_config(), **own, "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedRecurrent":
        """From what `get_config` gave."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes with integer weights as constants from here on, as the file will."""
        super().freeze(input_scale, output_scale)
        (kernel, bias), recurrent = self._variables()
        scales = {kind: quantizer.scale for kind, quantizer in self.quantizers.items()}
        self.frozen = (
            integer_matrix(kernel, bias, self.bits, input_scale, scales["inputs"], self.packed),
            [
                integer_matrix(part, own, self.bits, scales["tanh"], scales["recurrent"], self.packed)
                for part, own in recurrent
            ],
        )

    def thaw(self) -> None:
        """Computes with its variables again."""
        super().thaw()
        self.frozen = None

    def _variables(self) -> tuple[Any, list[Any]]:
        """Kernel and bias for the inputs; the same for each part of the recurrent kernel."""
        cell, parts = self.layer.cell, self.cell.matrices
        bias = None if cell.bias is None else tf.convert_to_tensor(cell.bias)
        # Only a GRU that is reset after the product has a bias for the hidden state.
        own, recurrent = (bias, None) if bias is None or len(bias.shape) == 1 else tf.unstack(bias)
        kernels = tf.split(cell.recurrent_kernel, parts, axis=1)
        return (tf.convert_to_tensor(cell.kernel), own), [(each, recurrent) for each in kernels]

    def _matrices(self) -> tuple[Any, list[Any]]:
        """As `_variables`, rounded."""
        if self.frozen is not None:
            inputs, recurrent = self.frozen
            return (inputs.kernel, inputs.bias), [(each.kernel, each.bias) for each in recurrent]
        (kernel, bias), parts = self._variables()
        return (rounded_matrix(kernel, self.bits), bias), [(rounded_matrix(k, self.bits), b) for k, b in parts]

    def _zeros(self, on: dict[str, Steps]) -> list[tf.Tensor]:
        """States before the first step, of one row, so that the batch stays open."""
        zeros = tf.zeros((1, self.layer.units))
        return [on[kind](zeros) for kind in self.cell.kinds[: self.cell.states]]

    def _product_of_zeros(self, on: dict[str, Steps], recurrent: list[Any]) -> list[tf.Tensor]:
        """What the first step adds: constants, as the converter gives a product of constants a scale that fails.

        They are cut from one constant: of one that is used again the converter loses the grid.
        """
        (kernel, bias), count = recurrent[0], len(recurrent)
        has_bias = bias is not None and count == 1
        whole = on["recurrent"].within(bias[None] if has_bias else tf.zeros((1, count * kernel.shape[1])))
        parts = on["recurrent"].split(whole, count) if count > 1 else [whole]
        on["recurrent"].seen.extend(parts)
        return parts

    def _drop_out(self, sequences: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The sequences with features left out, the same at every step, and what does so to the hidden state."""
        layer, seed = self.layer, self.layer.cell.seed_generator
        if layer.dropout:
            sequences *= keras.random.dropout(tf.ones_like(sequences[:, :1]), layer.dropout, seed=seed)
        if not layer.recurrent_dropout:
            return sequences, None
        ones = tf.ones((tf.shape(sequences)[0], layer.units))
        return sequences, keras.random.dropout(ones, layer.recurrent_dropout, seed=seed)
