"""Masks of padded steps as tensors of the graph, where Keras 3 would lose them.

tf_keras keeps the mask of its input behind MultiHeadAttention and takes the AND of the masks that meet in
Add and its like. Keras 3.15 drops the mask of a tensor that MultiHeadAttention has read, so that layers
behind the residual connection see none. Passing the masks as arguments gives the same outputs again.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import tf_keras
from keras import ops

_MERGES = (
    tf_keras.layers.Add, tf_keras.layers.Subtract, tf_keras.layers.Multiply, tf_keras.layers.Average,
    tf_keras.layers.Maximum, tf_keras.layers.Minimum,
)  # fmt: skip


def output_mask(layer: Any, inputs: list[Any], masks: list[Any]) -> Any:
    """The mask that tf_keras gives the output of a layer, as a Keras 3 tensor, or None.

    Args:
      layer: a tf_keras layer whose output has a mask.
      inputs: its tensors in Keras 3.
      masks: their masks, None where a tensor has none.
    """
    if isinstance(layer, tf_keras.layers.Embedding):
        return ops.not_equal(inputs[0], 0)
    if isinstance(layer, tf_keras.layers.Masking):
        return ops.any(ops.not_equal(inputs[0], layer.mask_value), axis=-1)
    present = [mask for mask in masks if mask is not None]
    if isinstance(layer, _MERGES):
        return _all(present)
    return present[0] if present else None


def mask_arguments(
    layer: keras.layers.Layer, args: Any, kwargs: Mapping[str, Any], masks: Mapping[int, Any]
) -> dict[str, Any]:
    """The keyword arguments that give a Keras 3 layer the masks of its inputs.

    Args:
      layer: the layer.
      args: its positional arguments.
      kwargs: its keyword arguments.
      masks: id of a Keras 3 tensor to its mask.
    """
    if isinstance(layer, keras.layers.MultiHeadAttention):
        query, value, *rest = args if len(args) > 1 else (args[0], kwargs["value"], kwargs.get("key"))
        key = rest[0] if rest and rest[0] is not None else value
        axes = ((query, -1), (value, -2), (key, -2))
        parts = [ops.expand_dims(masks[id(each)], axis) for each, axis in axes if id(each) in masks]
        given = kwargs.get("attention_mask")
        parts += [] if given is None else [ops.cast(given, "bool")]
        return {"attention_mask": _all(parts)} if parts else {}
    if isinstance(layer, (keras.layers.Attention, keras.layers.AdditiveAttention)):
        return {"mask": [masks.get(id(each)) for each in args[0][:2]]}
    if "mask" in inspect.signature(layer.call).parameters and id(args[0]) in masks:
        return {"mask": masks[id(args[0])]}
    return {}


def _all(masks: list[Any]) -> Any:
    """The AND of masks, or None when there are none."""
    result = masks[0] if masks else None
    for mask in masks[1:]:
        result = ops.logical_and(result, mask)
    return result
