"""`frozen`: a quantization-aware model as its file will compute, with constants in place of variables."""

import contextlib
from collections.abc import Iterator

import keras

from tfopt.quantize.fake_quant import FakeQuant
from tfopt.quantize.layer import QuantizedLayer
from tfopt.quantize.neighbours import quantizer_behind, quantizers_before


def is_quantized(model: keras.Model) -> bool:
    """Whether a model was made by `quantize_aware`, or holds one that was."""
    return any(isinstance(layer, QuantizedLayer) for layer in model._flatten_layers())


def quantized_layers(model: keras.Model) -> list[QuantizedLayer]:
    """The layers of the model's own graph that `quantize_aware` made."""
    return [layer for layer in model._flatten_layers(recursive=False) if isinstance(layer, QuantizedLayer)]


def activation_bits(model: keras.Model) -> int:
    """The bits of a quantization-aware model's activations: 8 or 16."""
    return max((layer.bits for layer in quantized_layers(model) if isinstance(layer, FakeQuant)), default=8)


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
                behind = quantizer_behind(layer)
                layer.freeze(
                    min((each.scale for each in quantizers_before(layer)), default=None),
                    # What kernels of 8 bits do in rounding twice, those of 16 do not.
                    behind.scale if behind is not None and behind.bits == 8 else None,
                )
        yield
    finally:
        for layer in made:
            layer.thaw()
