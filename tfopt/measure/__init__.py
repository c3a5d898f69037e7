"""What a .tflite file weighs, holds and takes to run; how good it and a Keras model are."""

from tfopt.measure.model_metrics import metrics
from tfopt.measure.scores import Metrics, score

__all__ = ["Metrics", "metrics", "score"]
