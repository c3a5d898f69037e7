"""TFMOT's `quantization.keras.experimental.default_n_bit`."""

from tfopt.compat.missing import refuse
from tfopt.compat.schemes import DefaultNBitQuantizeScheme

__all__ = ["DefaultNBitQuantizeScheme"]

_RULES = "tfopt rewrites models by rules of its own; choose bits by layer with a QuantizeConfig"

__getattr__ = refuse(
    __name__,
    {
        "DefaultNBitQuantizeLayoutTransform": _RULES,
        "DefaultNBitQuantizeRegistry": _RULES,
        "default_n_bit_transforms": _RULES,
    },
)
