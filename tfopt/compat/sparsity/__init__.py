"""TFMOT's `sparsity`."""

from tfopt.compat.sparsity import keras

__all__ = ["keras"]
