"""`FloatIsland`: a layer that stays in float inside a quantization-aware model, and why."""

from typing import Any

import keras

from tfopt.quantize.layer import QuantizedLayer


@keras.saving.register_keras_serializable("tfopt")
class FloatIsland(QuantizedLayer):
    """A layer or raw operator without an integer rule; in the file it runs in float32.

    Args:
      operation: the layer or operator.
      reason: why it has no integers, in words.

    >>> FloatIsland(keras.layers.Activation("softsign"), "no rule")(keras.ops.ones(1)).numpy()
    array([0.5], dtype=float32)
    """

    def __init__(self, operation: keras.Operation, reason: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.operation, self.reason = operation, reason

    def build(self, *input_shapes: Any) -> None:
        """Nothing: the operation builds itself when it is called."""

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """The operation's."""
        if isinstance(self.operation, keras.layers.Layer):
            return self.operation(*args, **kwargs)
        return self.operation.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """None: the operation attaches its mask itself."""

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The operation."""
        return self.operation(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        operation = keras.saving.serialize_keras_object(self.operation)
        return {**super().get_config(), "operation": operation, "reason": self.reason}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FloatIsland":
        """From what `get_config` gave."""
        return cls(**{**config, "operation": keras.saving.deserialize_keras_object(config["operation"])})


def float_islands(model: keras.Model) -> dict[str, str]:
    """The layers of a quantization-aware model that stay in float, with the reason."""
    return {layer.name: layer.reason for layer in model._flatten_layers() if isinstance(layer, FloatIsland)}
