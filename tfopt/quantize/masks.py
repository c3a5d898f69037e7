"""Masks of sequences: booleans in the file, never floats."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.graph import Node, Ref
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported, is_float, mask_of
from tfopt.quantize.rules_shape import cast, new_scale, otherwise

_RELATIONS = {"NotEqual": "not_equal", "Greater": "greater", "Less": "less"}
# The smallest power of two next to 1 that 8 bits hold exactly.
_SMALLEST_POWER = 2.0**-7


@keras.saving.register_keras_serializable("tfopt")
class ComparedWithZero(QuantizedLayer):
    """Floats as booleans.

    Args:
      relation: true where a value is "greater" than 0, "less", or "not_equal".

    >>> ComparedWithZero("greater")(np.float32([-1.0, 0.0, 1.0])).numpy()
    array([False, False,  True])
    """

    def __init__(self, relation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.relation = relation

    def compute_output_spec(self, inputs: Any) -> Any:
        """Booleans of the same shape."""
        return keras.KerasTensor(inputs.shape, "bool")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The comparison."""
        return _any_beyond_zero(tf.expand_dims(inputs, -1), self.relation)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "relation": self.relation}


@keras.saving.register_keras_serializable("tfopt")
class ZeroOrOne(QuantizedLayer):
    """Booleans as floats.

    >>> ZeroOrOne()(np.array([False, True])).numpy()
    array([0., 1.], dtype=float32)
    """

    def compute_output_spec(self, inputs: Any) -> Any:
        """Floats of the same shape."""
        return keras.KerasTensor(inputs.shape, "float32")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The choice between two numbers, which needs no float tensor in the file."""
        return tf.where(inputs, 1.0, 0.0)


@keras.saving.register_keras_serializable("tfopt")
class ZeroMasking(QuantizedLayer):
    """Masks the steps of a sequence in which every value is 0; the values stay.

    >>> ZeroMasking().compute_mask(np.float32([[[1.0], [0.0], [-1.0]]])).numpy()
    array([[ True, False,  True]])
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Another tensor of the same values, to which the mask is attached."""
        return tf.identity(inputs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """True where a step counts."""
        if isinstance(inputs, keras.KerasTensor):
            return keras.KerasTensor(inputs.shape[:-1], "bool")
        return _any_beyond_zero(inputs, "not_equal")


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
          mask: booleans of shape (batch, steps).
          training: watch ranges too.
        """
        count = tf.reduce_sum(tf.cast(mask, "int32"), 1, keepdims=True)
        powers, rests = _reciprocals(self.steps)
        weights = self.power(tf.where(mask, tf.gather(self.power(powers), count), 0.0))
        total = self.total(tf.matmul(tf.expand_dims(weights, 1), inputs), training=training)
        mean = total * tf.expand_dims(tf.gather(self.rest(rests), count), 1)
        return mean if self.keepdims else tf.squeeze(mean, 1)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), **{key: getattr(self, key) for key in ("steps", "keepdims", "bits")}}


def _any_beyond_zero(inputs: tf.Tensor, relation: str) -> tf.Tensor:
    """Whether a value along the last axis is "greater" than 0, "less", or "not_equal".

    There is no integer kernel that compares activations, but one for the index of the largest: with a 0 in front that
    is not the first where a value is greater.
    """
    with_zero = tf.pad(inputs, [[0, 0]] * (len(inputs.shape) - 1) + [[1, 0]])
    found = {
        "greater": lambda: tf.argmax(with_zero, -1, output_type=tf.int32) > 0,
        "less": lambda: tf.argmin(with_zero, -1, output_type=tf.int32) > 0,
    }
    return found[relation]() if relation in found else found["greater"]() | found["less"]()


def _reciprocals(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of two and factors whose products are 1 / n, for n from 0 to `steps`; 0 for 0."""
    count = np.arange(1, steps + 1)
    powers = np.maximum(2.0 ** -np.floor(np.log2(count)), _SMALLEST_POWER)
    with_zero = np.insert([powers, 1.0 / (count * powers)], 0, 0.0, axis=1).astype("float32")
    return with_zero[0], with_zero[1]


def masking(rewrite: Rewrite, node: Node) -> None:
    """Masking."""
    layer, source = node.operation, node.inputs[0]
    if layer.mask_value != 0.0:
        raise Unsupported(
            f"it masks the value {layer.mask_value}; 0 alone is held exactly by every grid of integers: pad with zeros "
            "and use Masking(mask_value=0.0)"
        )
    tensor = rewrite.once((id(layer), "masking"), lambda: ZeroMasking(name=rewrite.unique(node.name)))(
        rewrite.quantized(source)
    )
    rewrite.put(node.outputs[0], tensor, rewrite.values[source].quantizer)


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


def cast_mask(rewrite: Rewrite, node: Node) -> None:
    """Booleans to floats; other casts as elsewhere."""
    source = rewrite.values[node.inputs[0]].tensor
    to_float = "float" in keras.backend.standardize_dtype(node.operation.dtype)
    if keras.backend.standardize_dtype(source.dtype) != "bool" or not to_float:
        cast(rewrite, node)
        return
    rewrite.quantize(node.outputs[0], ZeroOrOne(name=rewrite.unique(node.name))(source), fixed=(0.0, 1.0))


def as_booleans(rewrite: Rewrite, node: Node, mask: Any) -> Any:
    """The tensor of an argument that is a mask, floats as booleans."""
    tensor = rewrite.quantized(mask)
    return _compare(rewrite, tensor, "not_equal", f"{node.name}_mask") if is_float(tensor) else tensor


def compare(rewrite: Rewrite, node: Node) -> None:
    """Comparisons: of integers as they are, of floats with 0."""
    if not any(is_float(rewrite.values[each].tensor) for each in node.inputs):
        otherwise(rewrite, node)
        return
    compared, *others = [*node.args, *node.kwargs.values()]
    if not isinstance(compared, Ref) or len(others) != 1 or not np.all(np.equal(others[0], 0)):
        raise Unsupported(f"{node.type} of floats has a rule for a tensor and 0 alone")
    relation = _RELATIONS[node.type]
    rewrite.put(node.outputs[0], _compare(rewrite, rewrite.quantized(compared), relation, node.name))


def either(rewrite: Rewrite, node: Node) -> None:
    """LogicalOr, by which Keras merges masks; of a mask with itself, as behind each residual block, that mask."""
    tensors = [rewrite.values[each].tensor for each in node.inputs]
    if len(tensors) == 2 and tensors[0] is tensors[1]:
        rewrite.put(node.outputs[0], tensors[0])
    else:
        otherwise(rewrite, node)


def _compare(rewrite: Rewrite, tensor: Any, relation: str, name: str) -> Any:
    return ComparedWithZero(relation, name=rewrite.unique(name))(tensor)


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    ((layers.Masking,), masking),
    ((layers.GlobalAveragePooling1D,), masked_mean),
    (("Cast",), cast_mask),
    (tuple(_RELATIONS), compare),
    (("LogicalOr",), either),
]
