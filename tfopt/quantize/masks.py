"""Masks of sequences: booleans in the file, never floats."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfopt.graph import Node, Ref
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.rewrite import Rewrite, Rule, Unsupported, is_float
from tfopt.quantize.rules_shape import cast, otherwise

_RELATIONS = {"NotEqual": "not_equal", "Greater": "greater", "Less": "less"}


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


def masking(rewrite: Rewrite, node: Node) -> None:
    """Masking."""
    layer, source = node.operation, node.inputs[0]
    _require_comparison(rewrite)
    if layer.mask_value != 0.0:
        raise Unsupported(
            f"it masks the value {layer.mask_value}; 0 alone is held exactly by every grid of integers: pad with zeros "
            "and use Masking(mask_value=0.0)"
        )
    tensor = rewrite.once((id(layer), "masking"), lambda: ZeroMasking(name=rewrite.unique(node.name)))(
        rewrite.quantized(source)
    )
    rewrite.put(node.outputs[0], tensor, rewrite.values[source].quantizer)


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
    _require_comparison(rewrite)
    return ComparedWithZero(relation, name=rewrite.unique(name))(tensor)


def _require_comparison(rewrite: Rewrite) -> None:
    if rewrite.activation_bits != 8:
        raise Unsupported(
            f"there is no kernel that compares activations of {rewrite.activation_bits} bits with 0: give masks as "
            "booleans or integers"
        )


RULES: list[tuple[tuple[type | str, ...], Rule]] = [
    ((layers.Masking,), masking),
    (("Cast",), cast_mask),
    (tuple(_RELATIONS), compare),
    (("LogicalOr",), either),
]
