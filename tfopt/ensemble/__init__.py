"""Ensembles: several models together, as one model, as the mean of their weights, or distilled into a small one."""

from tfopt.ensemble.average_stage import AverageWeights
from tfopt.ensemble.averaging import AveragingCallback
from tfopt.ensemble.boosting import boosted, parts_of
from tfopt.ensemble.combine import combine
from tfopt.ensemble.kinds import Architectures, Bagging, Boosting, Files, Seeds, Snapshots
from tfopt.ensemble.members import fresh
from tfopt.ensemble.one_model import as_one_model
from tfopt.ensemble.rows import bootstrap
from tfopt.ensemble.snapshots import SnapshotCallback
from tfopt.ensemble.stacking import Stacking, out_of_fold, stacking_weights
from tfopt.ensemble.stage import Ensemble
from tfopt.ensemble.student import DistillInto

__all__ = [
    "Architectures",
    "AverageWeights",
    "AveragingCallback",
    "Bagging",
    "Boosting",
    "DistillInto",
    "Ensemble",
    "Files",
    "Seeds",
    "SnapshotCallback",
    "Snapshots",
    "Stacking",
    "as_one_model",
    "boosted",
    "bootstrap",
    "combine",
    "fresh",
    "out_of_fold",
    "parts_of",
    "stacking_weights",
]
