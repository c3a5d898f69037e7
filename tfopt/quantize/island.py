"""`FloatIsland`: a layer that stays in float inside a quantization-aware model, and why."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.quantize.layer import QuantizedLayer

# The scope of all that islands compute; the file's tensors have it in their names.
SCOPE = "FloatIsland"


@keras.saving.register_keras_serializable("tfopt")
class FloatIsland(QuantizedLayer):
    """A layer or raw operator without an integer rule; in the file it runs in float32.

    One operator alone between two roundings, for which LiteRT has an integer kernel, the converter quantizes all the
    same: a product, but not a sine.

    Args:
      operation: the layer or operator.
      reason: why it has no integers, in words.

    >>> FloatIsland(keras.layers.Activation("softsign"), "no rule")([tf.ones(1)]).numpy()
    array([0.5], dtype=float32)
    >>> power = FloatIsland(keras.src.ops.numpy.Power(), "no rule")
    >>> power([tf.fill(1, 2.0)], arguments=[[0, 3.0], {}]).numpy()
    array([8.], dtype=float32)
    """

    def __init__(self, operation: keras.Operation, reason: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.operation, self.reason = operation, reason
        # Constants stay what they are; the operation converts its own inputs.
        self._convert_input_args = False

    def build(self, input_shape: Any) -> None:
        """Nothing: the operation builds itself when it is called."""

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: the operation has attached its masks to its outputs."""

    def compute_output_spec(
        self,
        inputs: Sequence[Any],
        arguments: Any = ((0,), {}),
        places: Sequence[int] = (0,),
        rounded: Sequence[int] = (),
        training: bool = False,
    ) -> Any:
        """The operation's."""
        return self._run(inputs, arguments, places)

    def call(
        self,
        inputs: Sequence[Any],
        arguments: Any = ((0,), {}),
        places: Sequence[int] = (0,),
        rounded: Sequence[int] = (),
        training: bool = False,
    ) -> Any:
        """The operation.

        Args:
          inputs: its tensors.
          arguments: what it is called with, (positional, named); 0 where a tensor stands.
          places: where the tensors stand in the flattened `arguments`.
          rounded: which of the inputs are integers in the file.
          training: reaches a layer by way of Keras' call context.
        """
        with tf.name_scope(SCOPE):
            if self._has_product:
                # The converter would give integers to a product in float that alone follows a DEQUANTIZE: a MAXIMUM
                # that changes nothing keeps the two apart.
                inputs = [
                    tf.maximum(tensor, tensor.dtype.min) if i in rounded and tensor.dtype.is_floating else tensor
                    for i, tensor in enumerate(inputs)
                ]
            return self._run(inputs, arguments, places)

    @property
    def _has_product(self) -> bool:
        return any(len(weight.shape) >= 2 for weight in getattr(self.operation, "weights", ()))

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        operation = keras.saving.serialize_keras_object(self.operation)
        return {**super().get_config(), "operation": operation, "reason": self.reason}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FloatIsland":
        """From what `get_config` gave."""
        return cls(**{**config, "operation": keras.saving.deserialize_keras_object(config["operation"])})

    def _run(self, inputs: Sequence[Any], arguments: Any, places: Sequence[int]) -> Any:
        flat = keras.tree.flatten(arguments)
        for place, tensor in zip(places, inputs, strict=True):
            flat[place] = tensor
        args, kwargs = keras.tree.pack_sequence_as(arguments, flat)
        return self.operation(*args, **kwargs)


def float_islands(model: keras.Model) -> dict[str, str]:
    """The layers of a quantization-aware model that stay in float, with the reason."""
    return {layer.name: layer.reason for layer in model._flatten_layers() if isinstance(layer, FloatIsland)}
