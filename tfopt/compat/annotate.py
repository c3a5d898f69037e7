"""`QuantizeAnnotate`: a layer that `quantize_apply` is to quantize."""

from typing import Any

import keras
from absl import logging

from tfopt.compat.quantizers import QuantizeConfig
from tfopt.compat.rebuild import copy_layer, rebuild
from tfopt.compat.wrapper import LayerWrapper
from tfopt.config import require


@keras.saving.register_keras_serializable("tfopt")
class QuantizeAnnotate(LayerWrapper):
    """A layer to be quantized; computes as it does.

    Args:
      layer: what is to be quantized.
      quantize_config: how; None: weights and activations of 8 bits.
    """

    prefix = "quantize_annotate"

    def __init__(self, layer: keras.Layer, quantize_config: QuantizeConfig | None = None, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.quantize_config = quantize_config

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        described = None
        if self.quantize_config is not None:
            described = {"class_name": type(self.quantize_config).__name__, "config": self.quantize_config.get_config()}
        return {**super().get_config(), "quantize_config": described}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "QuantizeAnnotate":
        """From what `get_config` gave."""
        described = config["quantize_config"]
        made = None
        if described is not None:
            name = described["class_name"]
            found = keras.saving.get_registered_object(name)
            require(
                found is not None,
                f"the model was saved with a QuantizeConfig {name!r}, which is not known here: load it inside "
                f"quantize_scope({{{name!r}: {name}}})",
            )
            made = found.from_config(described["config"])
        return super().from_config({**config, "quantize_config": made}, custom_objects)


def quantize_annotate_layer(to_annotate: keras.Layer, quantize_config: QuantizeConfig | None = None) -> keras.Layer:
    """A layer that `quantize_apply` is to quantize; those that are not annotated stay in float.

    Args:
      to_annotate: the layer.
      quantize_config: with how many bits; None: 8.

    Raises:
      TypeError: the configuration is no QuantizeConfig.
      ValueError: it is no layer.

    >>> quantize_annotate_layer(keras.layers.Dense(2, name="head")).name
    'quantize_annotate_head'
    """
    if quantize_config is not None and not isinstance(quantize_config, QuantizeConfig):
        raise TypeError(f"quantize_config must be a QuantizeConfig or None, received {quantize_config!r}")
    return QuantizeAnnotate(to_annotate, quantize_config)


def quantize_annotate_model(to_annotate: keras.Model) -> keras.Model:
    """A model whose layers `quantize_apply` is to quantize; those that are annotated already keep their configuration.

    Args:
      to_annotate: functional or Sequential, and as deep as you like; it is left as it is.

    Raises:
      ValueError: it is no such model.
    """

    def annotate(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, QuantizeAnnotate | keras.layers.InputLayer):
            return layer
        if isinstance(layer, keras.layers.Lambda):
            logging.warning(
                "the layer %r is a Lambda, whose function has no integer rule: it stays in float. Build it of layers "
                "or keras.ops to have it quantized",
                layer.name,
            )
            return copy_layer(layer)
        return QuantizeAnnotate(layer)

    return rebuild(to_annotate, annotate)
