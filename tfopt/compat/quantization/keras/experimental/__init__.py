"""TFMOT's `quantization.keras.experimental`."""

from tfopt.compat.quantization.keras.experimental import default_n_bit

__all__ = ["default_n_bit"]
