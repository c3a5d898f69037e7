"""TFMOT's `quantization.keras.collab_opts`."""

from tfopt.compat.schemes import Default8BitPrunePreserveQuantizeScheme

__all__ = ["Default8BitPrunePreserveQuantizeScheme"]
