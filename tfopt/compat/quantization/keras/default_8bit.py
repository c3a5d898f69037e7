"""TFMOT's `quantization.keras.default_8bit`."""

from tfopt.compat.missing import refuse
from tfopt.compat.schemes import Default8BitQuantizeScheme

__all__ = ["Default8BitQuantizeScheme"]

_RULES = "tfopt rewrites models by rules of its own; choose bits by layer with a QuantizeConfig"

__getattr__ = refuse(
    __name__,
    {
        "Default8BitQuantizeLayoutTransform": _RULES,
        "Default8BitQuantizeRegistry": _RULES,
        "default_8bit_transforms": _RULES,
    },
)
