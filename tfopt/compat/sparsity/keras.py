"""TFMOT's `sparsity.keras`."""

from tfopt.compat.policy import PruneForLatencyOnXNNPack, PruningPolicy
from tfopt.compat.prune import PrunableLayer, prune_low_magnitude, prune_scope, strip_pruning
from tfopt.compat.prune_callbacks import PruningSummaries, UpdatePruningStep
from tfopt.compat.schedules import ConstantSparsity, PolynomialDecay, PruningSchedule

__all__ = [
    "ConstantSparsity",
    "PolynomialDecay",
    "PrunableLayer",
    "PruneForLatencyOnXNNPack",
    "PruningPolicy",
    "PruningSchedule",
    "PruningSummaries",
    "UpdatePruningStep",
    "prune_low_magnitude",
    "prune_scope",
    "strip_pruning",
]
