"""`LayerWrapper`: a layer that does what the layer inside does, called in whatever way that one is."""

import inspect
from typing import Any

import keras

from tfopt.compat.rebuild import copy_layer
from tfopt.config import require


class LayerWrapper(keras.layers.Wrapper):
    """A layer around another, which it calls.

    Args:
      layer: what is wrapped: itself where it has no weights yet, else a copy, so that the model it comes from stays as
        it is.
      prefix: of the name.
    """

    prefix = ""

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        is_layer = isinstance(layer, keras.Layer) and not isinstance(layer, keras.Model)
        require(is_layer, f"expected a Keras 3 layer, received {type(layer).__module__}.{type(layer).__name__}")
        kwargs.pop("name", None)
        super().__init__(copy_layer(layer), **{**kwargs, "name": f"{self.prefix}_{layer.name}"})
        self.supports_masking = layer.supports_masking
        if getattr(layer, "_input_shape_arg", None) is not None:
            # The first layer of a Sequential model may bring the model's input shape along.
            self._input_shape_arg = layer._input_shape_arg

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer inside; one that reads several shapes builds itself when it is called."""
        if len(inspect.signature(self.layer.build).parameters) == 1:
            super().build(input_shape)

    def call(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The layer's outputs; `inputs` is named for Keras, which builds by its shape."""
        return self.layer(*args, **kwargs) if inputs is None else self.layer(inputs, *args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The layer's."""
        return self.layer.compute_mask(inputs, previous_mask)
