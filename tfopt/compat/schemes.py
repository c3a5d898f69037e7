"""TFMOT's quantization schemes: how many bits, and what of the weights is preserved."""

import dataclasses
from typing import Any

from tfopt.config import require


@dataclasses.dataclass(frozen=True)
class QuantizeScheme:
    """What `quantize_apply` does with a model; those of TFMOT, not of your own.

    Args:
      disable_per_axis: one scale for all channels of a kernel; not there, False only.
    """

    disable_per_axis: bool = False

    def __post_init__(self) -> None:
        require(
            not self.disable_per_axis,
            "disable_per_axis=True is not there: each channel of a convolution has a scale of its own, as LiteRT's "
            "kernels want it, and one for all where its weights are clustered",
        )

    @property
    def bits(self) -> tuple[int, int]:
        """Of weights, of activations."""
        return 8, 8

    @property
    def preserves(self) -> tuple[str, ...]:
        """What of the weights stays: "zeros", "clusters"."""
        return ()

    def get_layout_transformer(self) -> Any:
        """Not there: tfopt has rewriting rules of its own."""
        raise NotImplementedError("tfopt rewrites models by rules of its own, not by layout transformers")

    def get_quantize_registry(self) -> Any:
        """Not there: tfopt has rules of its own."""
        raise NotImplementedError("tfopt has quantization rules of its own, no registries")


@dataclasses.dataclass(frozen=True)
class Default8BitQuantizeScheme(QuantizeScheme):
    """8 bits."""


@dataclasses.dataclass(frozen=True)
class Default8BitPrunePreserveQuantizeScheme(QuantizeScheme):
    """8 bits; weights that are zero stay zero."""

    @property
    def preserves(self) -> tuple[str, ...]:
        """Zeros."""
        return ("zeros",)


@dataclasses.dataclass(frozen=True)
class Default8BitClusterPreserveQuantizeScheme(QuantizeScheme):
    """8 bits; weights that share a value go on sharing one.

    Args:
      preserve_sparsity: whether weights that are zero stay zero, too.

    >>> Default8BitClusterPreserveQuantizeScheme().preserves
    ('zeros', 'clusters')
    """

    disable_per_axis: bool = dataclasses.field(default=False, init=False)
    preserve_sparsity: bool = True

    @property
    def preserves(self) -> tuple[str, ...]:
        """Clusters, and zeros."""
        return ("zeros", "clusters") if self.preserve_sparsity else ("clusters",)


@dataclasses.dataclass(frozen=True)
class DefaultNBitQuantizeScheme(QuantizeScheme):
    """Other numbers of bits.

    Args:
      num_bits_weight: 2 to 8.
      num_bits_activation: 8, or 16 (extra `int16`).
    """

    num_bits_weight: int = 8
    num_bits_activation: int = 8

    @property
    def bits(self) -> tuple[int, int]:
        """Of weights, of activations."""
        return self.num_bits_weight, self.num_bits_activation
