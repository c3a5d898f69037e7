"""`QuantizedArithmetic`: sums, differences, products of tensors and constants, one rounding after each operator."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.integers import nudged_range
from tfopt.quantize.layer import QuantizedLayer

OPERATORS = {
    "add": tf.add,
    "subtract": tf.subtract,
    "multiply": tf.multiply,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
}


@keras.saving.register_keras_serializable("tfopt")
class QuantizedArithmetic(QuantizedLayer):
    """An operator over two or more tensors; between them, intermediate results are rounded as in the file.

    Args:
      operator: a key of `OPERATORS`.
      constant: a number or array that takes part too, or None; a number is exact, an array is rounded to 8 bits
        unless there are 16, which hold it as well as exactly.
      constant_first: whether it stands before the tensors.
      count: the number of operands.
      bits: of the intermediate results.

    >>> QuantizedArithmetic("subtract", constant=1.0, constant_first=True)([np.float32([0.25])]).numpy()
    array([0.75], dtype=float32)
    """

    def __init__(
        self,
        operator: str,
        constant: Any = None,
        constant_first: bool = False,
        count: int = 2,
        bits: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operator, self.constant_first, self.count, self.bits = operator, constant_first, count, bits
        self.constant = None if constant is None else np.asarray(constant, "float32")
        self.quantizers = [FakeQuant(bits=bits, name=f"partial_{i}") for i in range(count - 2)]

    def build(self, input_shape: Any) -> None:
        """Builds the quantizers between the operands."""
        for quantizer in self.quantizers:
            quantizer.build(None)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape that the operands broadcast to."""
        shapes = [*input_shape] + ([self.constant.shape] if self.constant is not None else [])
        result = shapes[0]
        for shape in shapes[1:]:
            result = keras.src.ops.operation_utils.broadcast_shapes(result, shape)
        return tuple(result)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """As Keras' merging layers: what any operand does not mask, where all have a mask."""
        masks = previous_mask if isinstance(previous_mask, list | tuple) else [previous_mask]
        if any(mask is None for mask in masks):
            return None
        different = list({id(mask): mask for mask in masks}.values())
        return functools.reduce(keras.ops.logical_or, different)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The operator over all operands, from left to right."""
        operands = list(inputs)
        if self.constant is not None:
            operands.insert(0 if self.constant_first else len(operands), self._rounded(self.constant))
        result = operands[0]
        for index, operand in enumerate(operands[1:]):
            result = OPERATORS[self.operator](result, operand)
            if index < len(self.quantizers):
                result = self.quantizers[index](result, training=training)
        return result

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        constant = None if self.constant is None else self.constant.tolist()
        own = {key: getattr(self, key) for key in ("operator", "constant_first", "count", "bits")}
        return {**super().get_config(), **own, "constant": constant}

    def _rounded(self, constant: np.ndarray) -> tf.Tensor:
        # The larger of two tensors must have their common scale, which the converter gives to plain constants only.
        if constant.ndim == 0 or self.bits == 16 or self.operator in ("maximum", "minimum"):
            return tf.constant(constant)
        low, high = nudged_range(float(constant.min()), max(float(constant.max()), 1e-9))
        return tf.quantization.fake_quant_with_min_max_vars(constant, low, high)
