"""`QuantizedUpSampling2D`: repeats pixels, in one operator of the file."""

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfopt.quantize.layer import QuantizedLayer


@keras.saving.register_keras_serializable("tfopt")
class QuantizedUpSampling2D(QuantizedLayer):
    """An UpSampling2D to the nearest pixel.

    Keras repeats along one axis after the other, which are five operators in a file; the one that does both has no
    gradient in XLA, so training stays with Keras'.

    Args:
      layer: the UpSampling2D.

    >>> QuantizedUpSampling2D(layers.UpSampling2D(2))(tf.ones((1, 3, 4, 2))).shape
    TensorShape([1, 6, 8, 2])
    """

    def __init__(self, layer: layers.UpSampling2D, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.frozen = False

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def call(self, inputs: Any) -> Any:
        """The layer; for the file, the operator that resizes."""
        if not self.frozen:
            return self.layer(inputs)
        return tf.image.resize(inputs, tf.shape(inputs)[1:3] * self.layer.size, "nearest")

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizedUpSampling2D":
        """From what `get_config` gave."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    def freeze(self, input_scale: float | None, output_scale: float | None) -> None:
        """Computes as the file will."""
        self.frozen = True

    def thaw(self) -> None:
        """Computes as Keras does."""
        self.frozen = False
