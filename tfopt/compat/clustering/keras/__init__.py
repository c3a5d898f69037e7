"""TFMOT's `clustering.keras`."""

from tfopt.compat.cluster import (
    CentroidInitialization,
    ClusterableLayer,
    cluster_scope,
    cluster_weights,
    strip_clustering,
)
from tfopt.compat.cluster_callbacks import ClusteringSummaries
from tfopt.compat.clustering.keras import experimental
from tfopt.compat.missing import refuse

__all__ = [
    "CentroidInitialization",
    "ClusterableLayer",
    "ClusteringSummaries",
    "cluster_scope",
    "cluster_weights",
    "experimental",
    "strip_clustering",
]

__getattr__ = refuse(
    __name__,
    {
        "ClusteringAlgorithm": "tfopt clusters the values of a variable whatever its shape: define "
        "get_clusterable_weights in a ClusterableLayer, and leave the algorithm out",
        "clusterable_layer": "take ClusterableLayer from this module",
    },
)
