"""`QuantizedMaskedMean`: the mean over the steps of a sequence that a mask leaves."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.graph import Node
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.masks import as_booleans
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported, mask_of
from tfopt.quantize.rules_shape import new_scale

# The smallest power of two next to 1 that 8 bits hold exactly.
_SMALLEST_POWER = 2.0**-7


@keras.saving.register_keras_serializable("tfopt")
class QuantizedMaskedMean(QuantizedLayer):
    """GlobalAveragePooling1D over the steps that a mask leaves; 0 where it leaves none.

    There is no integer kernel for a division by the number n of steps, so 1 / n is looked up in two tables: a power of
    two, which is exact, as the weight of each step in the sum; and a factor in (1/2, 1] for the sum.

    Args:
      steps: of the sequence, at least 1.
      keepdims: as the layer's.
      bits: of the sum.

    >>> layer = QuantizedMaskedMean(4)
    >>> layer(np.float32([[[1], [2], [6], [8]]]), mask=np.array([[True, True, True, False]])).numpy().round(2)
    array([[3.]], dtype=float32)
    """

    def __init__(self, steps: int, keepdims: bool = False, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps, self.keepdims, self.bits = steps, keepdims, bits
        self.power = FakeQuant(fixed=(0.0, 255 / 128), name="power")
        self.rest = FakeQuant(fixed=(0.0, 1.0), name="rest")
        self.total = FakeQuant(bits=bits, name="total")

    def build(self, input_shape: Any) -> None:
        """Builds the quantizers inside."""
        for quantizer in self._inner():
            quantizer.build(input_shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Without the steps, or with one."""
        batch, _, channels = input_shape
        return (batch, 1, channels) if self.keepdims else (batch, channels)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: no steps are left."""

    def call(self, inputs: tf.Tensor, mask: Any = None, training: bool = False) -> tf.Tensor:
        """The mean.

        Args:
          inputs: float tensor of shape (batch, steps, channels).
          mask: booleans or integers of shape (batch, steps).
          training: watch ranges too.
        """
        mask = tf.cast(mask, "bool")
        count = tf.reduce_sum(tf.cast(mask, "int32"), 1, keepdims=True)
        powers, rests = _reciprocals(self.steps)
        weights = self.power(tf.where(mask, tf.gather(self.power(powers), count), 0.0))
        total = self.total(tf.matmul(tf.expand_dims(weights, 1), inputs), training=training)
        mean = total * tf.expand_dims(tf.gather(self.rest(rests), count), 1)
        return mean if self.keepdims else tf.squeeze(mean, 1)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), **{key: getattr(self, key) for key in ("steps", "keepdims", "bits")}}


def _reciprocals(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of two and factors whose products are 1 / n, for n from 0 to `steps`; 0 for 0."""
    count = np.arange(1, steps + 1)
    powers = np.maximum(2.0 ** -np.floor(np.log2(count)), _SMALLEST_POWER)
    with_zero = np.insert([powers, 1.0 / (count * powers)], 0, 0.0, axis=1).astype("float32")
    return with_zero[0], with_zero[1]


def masked_mean(rewrite: Rewrite, node: Node) -> None:
    """GlobalAveragePooling1D, which leaves out the steps that are masked."""
    layer, tensor = node.operation, rewrite.quantized(node.inputs[0])
    # Keras passes masks as arguments where it can, otherwise they are attached to the tensor.
    given = [as_booleans(rewrite, node, mask) for mask in node.inputs[1:]]
    if not given and mask_of(tensor) is None:
        new_scale(rewrite, node)
        return
    steps = tensor.shape[1]
    if steps is None:
        raise Unsupported("it averages masked sequences of any length: give keras.Input the number of steps")
    made = rewrite.once(
        (id(layer), "masked mean"),
        lambda: QuantizedMaskedMean(steps, layer.keepdims, rewrite.activation_bits, name=rewrite.unique(node.name)),
    )
    rewrite.put(node.outputs[0], made(tensor, mask=given[0] if given else None))


RULES: list[tuple[tuple[type | str, ...], Rule]] = [((layers.GlobalAveragePooling1D,), masked_mean)]
