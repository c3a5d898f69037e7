"""Training: how a stage trains, resumes and computes."""

from tfopt.train.drop import with_dropout, with_stochastic_depth
from tfopt.train.finder import RateSweep, find_learning_rate
from tfopt.train.rates import Cosine, CosineRestarts, OneCycle, Plateau, Polynomial, StepDecay
from tfopt.train.regularize import regularized
from tfopt.train.statistics import recalibrate
from tfopt.train.strategies import strategy

__all__ = [
    "Cosine",
    "CosineRestarts",
    "OneCycle",
    "Plateau",
    "Polynomial",
    "RateSweep",
    "StepDecay",
    "find_learning_rate",
    "recalibrate",
    "regularized",
    "strategy",
    "with_dropout",
    "with_stochastic_depth",
]
