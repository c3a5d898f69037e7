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

    Args:
      operation: the layer or operator.
      reason: why it has no integers, in words.
      arguments: what it is called with, [positional, named]: None where a tensor stands. None: one tensor alone.
      places: where the tensors stand in the flattened `arguments`.

    >>> FloatIsland(keras.layers.Activation("softsign"), "no rule")([keras.ops.ones(1)]).numpy()
    array([0.5], dtype=float32)
    >>> power = keras.src.ops.numpy.Power()
    >>> FloatIsland(power, "no rule", arguments=[[None, 3], {}])([keras.ops.full(1, 2.0)]).numpy()
    array([8.], dtype=float32)
    """

    def __init__(
        self,
        operation: keras.Operation,
        reason: str,
        arguments: Any = None,
        places: Sequence[int] = (0,),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operation, self.reason = operation, reason
        self.arguments, self.places = [[None], {}] if arguments is None else arguments, list(places)

    def build(self, input_shape: Any) -> None:
        """Nothing: the operation builds itself when it is called."""

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: the operation has attached its masks to its outputs."""

    def compute_output_spec(self, inputs: Sequence[Any], training: bool = False) -> Any:
        """The operation's."""
        return self._run(inputs)

    def call(self, inputs: Sequence[Any], training: bool = False) -> Any:
        """The operation.

        Args:
          inputs: its tensors, in the order of `places`.
          training: reaches a layer by way of Keras' call context.
        """
        with tf.name_scope(SCOPE):
            return self._run(inputs)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        serialize = keras.saving.serialize_keras_object
        own = {"operation": serialize(self.operation), "arguments": serialize(self.arguments)}
        return {**super().get_config(), **own, "reason": self.reason, "places": self.places}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FloatIsland":
        """From what `get_config` gave."""
        made = {key: keras.saving.deserialize_keras_object(config[key]) for key in ("operation", "arguments")}
        return cls(**{**config, **made})

    def _run(self, inputs: Sequence[Any]) -> Any:
        flat = keras.tree.flatten(self.arguments)
        for place, tensor in zip(self.places, inputs, strict=True):
            flat[place] = tensor
        args, kwargs = keras.tree.pack_sequence_as(self.arguments, flat)
        return self.operation(*args, **kwargs)


def float_islands(model: keras.Model) -> dict[str, str]:
    """The layers of a quantization-aware model that stay in float, with the reason."""
    return {layer.name: layer.reason for layer in model._flatten_layers() if isinstance(layer, FloatIsland)}
