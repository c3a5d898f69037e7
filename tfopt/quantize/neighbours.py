"""Which quantizers stand around a layer in the graph of its model."""

from typing import Any

import keras

from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.layer import QuantizedLayer


def quantizers_before(layer: keras.layers.Layer) -> list[FakeQuant]:
    """The quantizers of what a layer reads, over all of its calls."""
    tensors = [tensor for node in layer._inbound_nodes for tensor in node.input_tensors]
    return [found for tensor in tensors if (found := _quantizer(tensor)) is not None]


def quantizer_behind(layer: keras.layers.Layer) -> FakeQuant | None:
    """The quantizer that alone reads what a layer makes; None where there is another reader, or none."""
    readers = {node.operation for node in layer._outbound_nodes}
    reader = readers.pop() if len(readers) == 1 else None
    return reader if isinstance(reader, FakeQuant) else None


def _quantizer(tensor: Any) -> FakeQuant | None:
    operation, index, _ = tensor._keras_history
    if isinstance(operation, FakeQuant):
        return operation
    if isinstance(operation, QuantizedLayer) or operation is None:
        return None
    # Dropout and what else is there for training only leaves the grid.
    sources = operation._inbound_nodes[index].input_tensors
    return _quantizer(sources[0]) if len(sources) == 1 else None
