"""Training: how a stage trains, resumes and computes."""

from tfopt.train.strategies import strategy

__all__ = ["strategy"]
