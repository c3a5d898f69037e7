"""`QuantizedEmbedding`: a table of integers."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.graph import Node
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.integers import largest_integer
from tfopt.quantize.kernels import halves_away_from_zero
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported, is_float


@keras.saving.register_keras_serializable("tfopt")
class QuantizedEmbedding(FakeQuant):
    """An embedding whose table holds integers under one scale; what it gives is on the table's grid.

    Only the rows that are looked up are rounded in training, so that the gradient stays sparse.

    Args:
      layer: the embedding.
      bits: of the table and of activations, 8 or 16.

    >>> layer = QuantizedEmbedding(layers.Embedding(2, 2))
    >>> layer.build((None,))
    >>> layer.set_weights([np.array([[1.27, -1.27], [0.016, 0.004]])])
    >>> layer(np.array([1])).numpy().round(4)
    array([[0.02, 0.  ]], dtype=float32)
    """

    def __init__(self, layer: Any, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(bits=bits, **kwargs)
        self.layer = layer
        self.table: np.ndarray | None = None

    def build(self, input_shape: Any) -> None:
        """Builds the layer inside."""
        if not self.layer.built:
            self.layer.build(input_shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Any, training: bool = False, again: str | None = None) -> Any:
        """The layer's, or the tensor's that comes again."""
        shape = inputs.shape if again else self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, "float32")

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """What is not 0, with `mask_zero`; of a tensor that comes again its own."""
        return previous_mask if is_float(inputs) else self.layer.compute_mask(inputs)

    def call(self, inputs: Any, training: bool = False, again: str | None = None) -> Any:
        """The rows of the table.

        Args:
          inputs: integers from 0 to the table's number of rows; or, with `again`, a float tensor.
          training: of no effect.
          again: as for `FakeQuant`.
        """
        if again is None:
            inputs = tf.gather(self._table(), inputs)
        if self.calibrates or (again == "exact" and self.frozen is None):
            return inputs
        if again == "averaged" and self.bits == 8 and self.frozen is None:
            inputs = halves_away_from_zero(inputs, *self._range())
        return self._round(inputs, *(self.frozen or self._range()))

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        config = keras.layers.Layer.get_config(self)
        return {**config, "layer": keras.saving.serialize_keras_object(self.layer), "bits": self.bits}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedEmbedding":
        """From what `get_config` gave."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    @property
    def is_calibrated(self) -> bool:
        """The table tells the range."""
        return True

    def freeze(self, input_scale: float | None = None, output_scale: float | None = None) -> None:
        """Computes with the table as a constant from here on, as the file will."""
        self.table = keras.ops.convert_to_numpy(self.layer.embeddings)
        low, high = (float(end) for end in self._range())
        self.frozen = low, high

    def _table(self) -> Any:
        """The table, in the file on its grid; of 16 bits the operator behind the look-up tells it."""
        if self.frozen is None:
            return self.layer.embeddings.value
        return self._round(self.table, *self.frozen) if self.bits == 8 else tf.constant(self.table)

    def _range(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Zero in the middle, the largest entry at the largest integer."""
        table = tf.stop_gradient(tf.convert_to_tensor(self.layer.embeddings))
        largest = largest_integer(self.bits)
        step = tf.maximum(tf.reduce_max(tf.abs(table)) / largest, 1e-9)
        return -(largest + (self.bits == 8)) * step, largest * step


def embedding(rewrite: Rewrite, node: Node) -> None:
    """Embedding."""
    layer, source = node.operation, rewrite.values[node.inputs[0]].tensor
    if is_float(source):
        raise Unsupported("its indices arrive as floats, which 8 bits cannot hold: use keras.Input(..., dtype='int32')")
    if rewrite.weight_bits(layer) != 8:
        raise Unsupported(
            f"tables that LiteRT looks up in have 8 bits: say layers={{{layer.name!r}: 8}} to leave this one at them"
        )
    made = rewrite.once(
        (id(layer), "embedding"),
        lambda: QuantizedEmbedding(rewrite.copy(layer), rewrite.activation_bits, name=rewrite.unique(node.name)),
    )
    rewrite.put(node.outputs[0], made(source), made)


RULES: list[tuple[tuple[type | str, ...], Rule]] = [((layers.Embedding,), embedding)]
