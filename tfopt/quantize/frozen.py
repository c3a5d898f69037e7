"""`frozen`: a quantization-aware model as its file will compute, with constants in place of variables."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.layer import QuantizedLayer


def is_quantized(model: keras.Model) -> bool:
    """Whether a model was made by `quantize_aware`, or holds one that was."""
    return any(isinstance(layer, QuantizedLayer) for layer in model._flatten_layers())


def quantized_layers(model: keras.Model) -> list[QuantizedLayer]:
    """The layers of the model's own graph that `quantize_aware` made."""
    return [layer for layer in model._flatten_layers(recursive=False) if isinstance(layer, QuantizedLayer)]


@contextlib.contextmanager
def frozen(model: keras.Model) -> Iterator[None]:
    """Inside the block the model computes with constants: integer weights, known ranges, BatchNormalization folded.

    Graphs traced inside are what LiteRT's converter reads integers and scales from.

    Raises:
      ValueError: a range is not known yet, or not finite.
    """
    made = quantized_layers(model)
    try:
        # Ranges first: what weights must hold follows from them.
        for layer in made:
            if isinstance(layer, FakeQuant):
                layer.freeze()
        for layer in made:
            if not isinstance(layer, FakeQuant):
                layer.freeze(_input_scale(layer), _output_scale(layer))
        yield
    finally:
        for layer in made:
            layer.thaw()


def _input_scale(layer: keras.layers.Layer) -> float | None:
    """The smallest step of what a layer reads at any of its calls; None where none of it is quantized."""
    tensors = [tensor for node in layer._inbound_nodes for tensor in node.input_tensors]
    scales = [scale for tensor in tensors if (scale := _scale(tensor)) is not None]
    return min(scales, default=None)


def _output_scale(layer: keras.layers.Layer) -> float | None:
    readers = {node.operation for node in layer._outbound_nodes}
    reader = readers.pop() if len(readers) == 1 else None
    return reader.scale if isinstance(reader, FakeQuant) else None


def _scale(tensor: Any) -> float | None:
    operation, index, _ = tensor._keras_history
    if isinstance(operation, FakeQuant):
        return operation.scale
    if isinstance(operation, QuantizedLayer) or operation is None:
        return None
    # Dropout and what else is there for training only leaves the grid.
    sources = operation._inbound_nodes[index].input_tensors
    return _scale(sources[0]) if len(sources) == 1 else None
