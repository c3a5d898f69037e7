"""TFMOT's `clustering.keras.experimental`."""

from tfopt.compat.cluster import cluster_weights

__all__ = ["cluster_weights"]
