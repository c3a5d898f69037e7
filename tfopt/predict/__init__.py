"""Runs a model over files of examples, in processes or on a cluster; goes on after a kill, every row exactly once."""

from tfopt.predict.run import Prediction, predict_files

__all__ = ["Prediction", "predict_files"]
