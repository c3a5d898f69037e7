"""TFMOT's `experimental`."""

from tfopt.compat.experimental import combine

__all__ = ["combine"]
