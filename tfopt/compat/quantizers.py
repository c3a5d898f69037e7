"""TFMOT's `QuantizeConfig` and quantizers, as far as an integer file can do what they describe."""

import abc
import dataclasses
from typing import Any

import keras

from tfopt.config import require
from tfopt.quantize.bits import WEIGHT_BITS


class Quantizer(abc.ABC):
    """How values are rounded. tfopt reads what it says and rounds as LiteRT's kernels do; it is never called."""

    def build(self, tensor_shape: Any, name: str, layer: keras.Layer) -> dict[str, Any]:
        """Not called."""
        raise NotImplementedError("tfopt rounds as LiteRT's kernels do; it builds no quantizers")

    def __call__(self, inputs: Any, training: bool, weights: Any, **kwargs: Any) -> Any:
        """Not called."""
        raise NotImplementedError("tfopt rounds as LiteRT's kernels do; it calls no quantizers")

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments of the class."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Quantizer":
        """From the arguments of the class."""
        return cls(**config)


@dataclasses.dataclass
class _Described(Quantizer):
    """A quantizer by its arguments.

    Args:
      num_bits: of the integers.
      per_axis: a scale for each channel; which weights have one is the kernels' matter, whatever is said here.
      symmetric: whether the range reaches as far below 0 as above.
      narrow_range: whether the least integer is left out, as LiteRT's weights always do.
    """

    num_bits: int
    per_axis: bool
    symmetric: bool
    narrow_range: bool

    def get_config(self) -> dict[str, Any]:
        """The arguments of the class."""
        return dataclasses.asdict(self)


class LastValueQuantizer(_Described):
    """The range of what was seen last."""


class MovingAverageQuantizer(_Described):
    """The mean range of what was seen."""


class AllValuesQuantizer(_Described):
    """The range of all that was seen."""


@dataclasses.dataclass
class FixedQuantizer(Quantizer):
    """A range that is given; tfopt finds ranges from data, and refuses it."""

    num_bits: int
    init_min: float
    init_max: float
    narrow_range: bool

    def get_config(self) -> dict[str, Any]:
        """The arguments of the class."""
        return dataclasses.asdict(self)


class QuantizeConfig(abc.ABC):
    """What of a layer is quantized, and with how many bits: TFMOT's interface, which `quantize_apply` reads."""

    @abc.abstractmethod
    def get_weights_and_quantizers(self, layer: keras.Layer) -> list[tuple[Any, Quantizer]]:
        """(variable, quantizer) for each weight."""

    @abc.abstractmethod
    def get_activations_and_quantizers(self, layer: keras.Layer) -> list[tuple[Any, Quantizer]]:
        """(activation function, quantizer) for each activation."""

    @abc.abstractmethod
    def set_quantize_weights(self, layer: keras.Layer, quantize_weights: list[Any]) -> None:
        """Not called."""

    @abc.abstractmethod
    def set_quantize_activations(self, layer: keras.Layer, quantize_activations: list[Any]) -> None:
        """Not called."""

    @abc.abstractmethod
    def get_output_quantizers(self, layer: keras.Layer) -> list[Quantizer]:
        """A quantizer for each output."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments of the class."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeConfig":
        """From the arguments of the class."""
        return cls(**config)


def weight_bits(layer: keras.Layer, config: QuantizeConfig) -> int:
    """The bits of a layer's weights that a configuration asks for.

    Raises:
      ValueError: it asks for what no integer file of LiteRT can do, in words that say what to do instead.
    """
    start = f"the quantize_config of {layer.name!r} ({type(config).__name__})"
    weights: list[tuple[Any, Any]] = list(config.get_weights_and_quantizers(layer))
    made: list[Any] = [each for _, each in config.get_activations_and_quantizers(layer)] + config.get_output_quantizers(
        layer
    )
    require(
        bool(weights),
        f"{start} quantizes no weights: in an integer file a layer is quantized whole. Leave it without "
        "quantize_annotate_layer to have it in float",
    )
    require(
        bool(made),
        f"{start} quantizes neither activations nor outputs: what an int8 layer gives is int8. Leave the layer without "
        "quantize_annotate_layer to have it in float",
    )
    for quantizer in [*(each for _, each in weights), *made]:
        require(
            type(quantizer) in (LastValueQuantizer, MovingAverageQuantizer, AllValuesQuantizer),
            f"{start} has a {type(quantizer).__name__}, which LiteRT's kernels cannot round with: take "
            "LastValueQuantizer, MovingAverageQuantizer or AllValuesQuantizer. To keep weights in a range give the "
            "layer a kernel_constraint; to experiment with rounding of your own stay on TFMOT (tfopt.tfmot)",
        )
    biases = [variable for variable, _ in weights if variable is getattr(layer, "bias", None)]
    require(not biases, f"{start} quantizes the bias, which is int32 in the file: take it out of the weights")
    require(
        all(quantizer.symmetric for _, quantizer in weights),
        f"{start} has weights with symmetric=False: LiteRT's integer weights are symmetric. Write symmetric=True",
    )
    bits = {quantizer.num_bits for _, quantizer in weights}
    require(
        len(bits) == 1 and bits <= set(WEIGHT_BITS),
        f"{start} asks for weights of {', '.join(map(str, sorted(bits)))} bits: a layer's have one number from 2 to 8",
    )
    of_activations = {quantizer.num_bits for quantizer in made}
    require(
        of_activations == {8},
        f"{start} asks for activations of {', '.join(map(str, sorted(of_activations)))} bits: a layer's have 8; for 16 "
        "in the whole model use tfopt.quantize_aware(model, activation_bits=16)",
    )
    return int(bits.pop())
