"""`QuantizedAttention`: multi-head attention with integers."""

import inspect
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfopt.graph import Node, Ref
from tfopt.quantize import embedding, layer_norm, masked_mean, masks
from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.functions import FUNCTIONS
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.masks import as_booleans
from tfopt.quantize.matrix import IntegerMatrix, integer_matrix, multiply, rounded_matrix, sizes
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported

# How far masked scores are below the least of the others: exp(-8) is less than a half of softmax's steps of 1 / 256.
_MARGIN = 8.0
# Below the range of any scores; rounding cuts it to the range's end.
_FAR_BELOW = -1e9

_PROJECTIONS = ("query", "key", "value", "output")


@keras.saving.register_keras_serializable("tfopt")
class QuantizedAttention(QuantizedLayer):
    """Multi-head attention with integer weights, every inner result rounded.

    The division of the scores by the root of the key's size is part of the query's weights. Where a mask hides scores,
    they are at the low end of the scores' range, which is widened for that, and so have a probability of exactly 0.

    Args:
      layer: the MultiHeadAttention.
      bits: of the weights, 2 to 8.
      activation_bits: of inner results, 8 or 16.
      packed: whether the file holds 4 bits as such, and not in int8.

    Source: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, section 3.2.

    >>> layer = QuantizedAttention(layers.MultiHeadAttention(num_heads=2, key_dim=4))
    >>> layer(tf.ones((1, 5, 8)), tf.ones((1, 6, 8))).shape
    TensorShape([1, 5, 8])
    """

    def __init__(self, layer: Any, bits: int = 8, activation_bits: int = 8, packed: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer, self.bits, self.activation_bits, self.packed = layer, bits, activation_bits, packed
        fixed = {"weights": FUNCTIONS["softmax"].output()}
        self.quantizers = {
            name: FakeQuant(bits=activation_bits, name=f"{self.name}_{name}", **fixed.get(name, {}))
            for name in ("query", "key", "value", "scores", "weights", "context")
        }
        self.frozen: dict[str, IntegerMatrix] | None = None

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        """Builds the layer and the quantizers inside."""
        if not self.layer.built:
            self.layer.build(query_shape, value_shape, key_shape)
        for quantizer in self.quantizers.values():
            quantizer.build(None)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_spec(*args, **kwargs)

    def call(
        self,
        query: tf.Tensor,
        value: tf.Tensor,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """The layer. Masks are booleans or integers; Keras passes those that are attached to the tensors."""
        key = value if key is None else key
        mask = self.layer._compute_attention_mask(
            query, value, query_mask, value_mask, key_mask, attention_mask, use_causal_mask
        )
        while mask is not None and len(mask.shape) < 4:
            mask = tf.expand_dims(mask, -3)
        queries, keys, values = (
            self._heads(name, tensor, training) for name, tensor in (("query", query), ("key", key), ("value", value))
        )
        scores = self._scores(tf.matmul(queries, keys, transpose_b=True), mask, training)
        weights = tf.nn.softmax(scores)
        if mask is not None and (self.layer.dropout or return_attention_scores):
            # Keras computes these in another way: a query that may see nothing gets zeros, not the mean of all.
            weights = tf.where(mask, weights, 0.0)
        weights = self.quantizers["weights"](weights)
        context = tf.matmul(self.layer._dropout_layer(weights, training=training), values)
        context = tf.transpose(self.quantizers["context"](context, training=training), (0, 2, 1, 3))
        joined = tf.reshape(context, (*sizes(context)[:2], self.layer.num_heads * self.layer.value_dim))
        outputs = multiply(joined, *self._matrix("output"))
        return (outputs, weights) if return_attention_scores else outputs

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        own = {key: getattr(self, key) for key in ("bits", "activation_bits", "packed")}
        return {**super().get_config(), **own, "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedAttention":
        """From what `get_config` gave."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes with integer weights as constants from here on, as the file will."""
        super().freeze(input_scale, output_scale)
        scales = {name: quantizer.scale for name, quantizer in self.quantizers.items()}
        given = dict.fromkeys(_PROJECTIONS, input_scale) | {"output": scales["context"]}
        made = scales | {"output": output_scale}
        self.frozen = {
            name: integer_matrix(*self._variables(name), self.bits, given[name], made[name], self.packed)
            for name in _PROJECTIONS
        }

    def thaw(self) -> None:
        """Computes with its variables again."""
        super().thaw()
        self.frozen = None

    def _heads(self, name: str, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """A projection, as a tensor of shape (batch, heads, steps, size)."""
        outputs = self.quantizers[name](multiply(inputs, *self._matrix(name)), training=training)
        heads = self.layer.num_heads
        split = tf.reshape(outputs, (*sizes(outputs)[:2], heads, outputs.shape[-1] // heads))
        return tf.transpose(split, (0, 2, 1, 3))

    def _scores(self, scores: tf.Tensor, mask: Any, training: bool) -> tf.Tensor:
        """The scores on their grid, those that the mask hides at its low end."""
        on_grid = self.quantizers["scores"]
        if mask is None:
            return on_grid(scores, training=training)
        if on_grid.frozen is not None:
            return on_grid(tf.where(mask, on_grid(scores), on_grid.frozen[0]))
        least = _FAR_BELOW
        if on_grid.calibrates or training:
            least = tf.stop_gradient(tf.reduce_min(tf.where(mask, scores, 0.0))) - _MARGIN
        return on_grid(tf.where(mask, scores, least), training=training)

    def _variables(self, name: str) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Kernel, of shape (inputs, outputs), and bias of a projection."""
        dense = getattr(self.layer, f"_{name}_dense")
        inputs = -1 if name == "output" else dense.kernel.shape[0]
        outputs = dense.kernel.shape[-1] if name == "output" else -1
        gain = self.layer.key_dim**-0.5 if name == "query" else 1.0
        bias = None if dense.bias is None else tf.reshape(dense.bias, (-1,)) * gain
        return tf.reshape(dense.kernel, (inputs, outputs)) * gain, bias

    def _matrix(self, name: str) -> tuple[Any, Any]:
        """As `_variables`, rounded."""
        if self.frozen is not None:
            return self.frozen[name].kernel, self.frozen[name].bias
        kernel, bias = self._variables(name)
        return rounded_matrix(kernel, self.bits), bias


def attention(rewrite: Rewrite, node: Node) -> None:
    """MultiHeadAttention."""
    layer = node.operation
    arguments = inspect.signature(layers.MultiHeadAttention.call).bind(None, *node.args, **node.kwargs).arguments
    del arguments["self"]
    _check(layer, arguments)
    made = rewrite.once(
        (id(layer), "attention"),
        lambda: QuantizedAttention(
            rewrite.copy(layer),
            rewrite.weight_bits(layer),
            rewrite.activation_bits,
            rewrite.weight_bits.packed(layer),
            name=rewrite.unique(node.name),
        ),
    )

    def new(name: str, value: Any) -> Any:
        if not isinstance(value, Ref):
            return value
        return as_booleans(rewrite, node, value) if name.endswith("_mask") else rewrite.quantized(value)

    results = made(**{name: new(name, value) for name, value in arguments.items()})
    outputs, *weights = keras.tree.flatten(results)
    rewrite.put(node.outputs[0], outputs)
    for ref, tensor in zip(node.outputs[1:], weights, strict=True):
        rewrite.quantize(ref, tensor, **FUNCTIONS["softmax"].output())


def _check(layer: Any, arguments: dict[str, Any]) -> None:
    """Raises where a MultiHeadAttention computes in another way."""
    if type(layer) is not layers.MultiHeadAttention:
        raise Unsupported(f"{type(layer).__name__} is a class of its own: its rule would be MultiHeadAttention's")
    ranks = {name: len(arguments[name].shape) for name in ("query", "value", "key") if arguments.get(name) is not None}
    if set(ranks.values()) != {3} or layer.attention_axes != (1,):
        raise Unsupported(
            f"it attends over the axes {layer.attention_axes} of tensors of rank {max(ranks.values())}, the rule is "
            "for (batch, steps, features): reshape the steps into one axis"
        )
    if len(layer._output_shape or (0,)) > 1:
        raise Unsupported(f"its output_shape={layer._output_shape} has several axes: give one number, then reshape")
    if getattr(layer, "_use_gate", False):
        raise Unsupported("there is no integer rule for use_gate=True")
    if layer._activity_regularizer is not None:
        raise Unsupported("there is no rule for its activity_regularizer: leave it out")


def without_heads(rewrite: Rewrite, node: Node) -> None:
    """Other attention layers, which have no rule."""
    raise Unsupported(f"there is no integer rule for {node.type}: use MultiHeadAttention")


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    ((layers.MultiHeadAttention,), attention),
    ((layers.GroupQueryAttention, layers.Attention, layers.AdditiveAttention), without_heads),
    *layer_norm.RULES,
    *embedding.RULES,
    *masks.RULES,
    *masked_mean.RULES,
]
