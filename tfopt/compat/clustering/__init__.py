"""TFMOT's `clustering`."""

from tfopt.compat.clustering import keras

__all__ = ["keras"]
