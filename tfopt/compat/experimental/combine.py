"""TFMOT's `experimental.combine`."""

from typing import Any

from tfopt.compat.schemes import Default8BitClusterPreserveQuantizeScheme, Default8BitPrunePreserveQuantizeScheme

__all__ = [
    "Default8BitClusterPreserveQuantizeScheme",
    "Default8BitPrunePreserveQuantizeScheme",
    "strip_clustering_cqat",
]


def strip_clustering_cqat(to_strip: Any) -> Any:
    """The model or layer itself: cluster-preserving training adds nothing here that must be stripped."""
    return to_strip
