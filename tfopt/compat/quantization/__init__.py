"""TFMOT's `quantization`."""

from tfopt.compat.quantization import keras

__all__ = ["keras"]
