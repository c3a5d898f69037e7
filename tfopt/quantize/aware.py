"""`quantize_aware`: a float Keras model in, a Keras model that trains as its integer file will compute out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
from absl import logging

from tfopt.config import require
from tfopt.quantize.frozen import is_quantized
from tfopt.quantize.graph import Node, flatten, functional
from tfopt.quantize.rewrite import Rewrite, Unsupported, is_float
from tfopt.quantize.rules import rule_for


def quantize_aware(
    model: keras.Model,
    weight_bits: int = 8,
    activation_bits: int = 8,
    layers: Any = None,
    on_unsupported: Literal["raise", "float"] = "raise",
) -> keras.Model:
    """Rewrites a model so that it trains, and then predicts, as its integer file will compute."""
    require(not is_quantized(model), f"the model {model.name!r} is quantization-aware already")
    graph = flatten(model)
    rewrite = Rewrite(graph, lambda layer: weight_bits, activation_bits)
    inputs = []
    for ref, tensor in zip(graph.inputs, functional(model, model.name)._inputs, strict=True):
        inputs.append(keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history.operation.name))
        rewrite.put(ref, inputs[-1])

    def unsupported(node: Node, reason: str) -> Any:
        raise ValueError(f"{node.name!r}: {reason}")

    rewrite.run(rule_for, unsupported)
    outputs = rewrite.outputs()
    source = functional(model, model.name)
    aware = keras.Model(
        keras.tree.pack_sequence_as(source._inputs_struct, inputs),
        keras.tree.pack_sequence_as(source._outputs_struct, outputs),
        name=model.name,
    )
    for ours, copy in rewrite.copies:
        copy.set_weights(ours.get_weights())
    return aware
