"""The metric of a task, from its loss, labels and outputs."""

import dataclasses
from typing import Any

import numpy as np

from tfopt.config import require


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric on one output.

    Args:
      name: "accuracy", "binary_accuracy" or "mean_absolute_error".
      threshold: for "binary_accuracy", outputs above it mean 1: 0.5 for probabilities, 0 for logits.
    """

    name: str
    threshold: float = 0.5

    def measure(self, labels: np.ndarray, outputs: np.ndarray) -> float:
        """The metric of outputs of shape (examples, …) against labels.

        >>> Metric("accuracy").measure(np.array([1, 0]), np.array([[0.1, 0.9], [0.2, 0.8]]))
        0.5
        """
        labels = np.asarray(labels)
        if self.name == "mean_absolute_error":
            return float(np.mean(np.abs(_like(labels, outputs) - outputs)))
        if self.name == "binary_accuracy":
            return float(np.mean((_like(labels, outputs) > 0.5) == (outputs > self.threshold)))
        return float(np.mean(_classes(labels, outputs) == outputs.argmax(axis=-1)))


def choose_metric(loss: Any, labels: Any, outputs: np.ndarray) -> Metric | None:
    """Tells the task: by the compiled loss where there is one, else by labels and outputs; None: unknown.

    >>> choose_metric(None, np.array([2, 0]), np.zeros((2, 3)))
    Metric(name='accuracy', threshold=0.5)
    >>> choose_metric("mse", np.array([2, 0]), np.zeros((2, 1)))
    Metric(name='mean_absolute_error', threshold=0.5)
    """
    # Probabilities decide at 0.5, logits at 0.
    threshold = 0.5 if outputs.size and outputs.min() >= 0 and outputs.max() <= 1 else 0.0
    if loss is not None:
        name = (loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))).lower()
        if "binary" in name:
            return Metric("binary_accuracy", 0.0 if getattr(loss, "from_logits", False) else threshold)
        return Metric("accuracy" if "crossentropy" in name else "mean_absolute_error")
    classes = outputs.shape[-1] if outputs.ndim > 1 else 1
    if labels is None:
        return Metric("accuracy") if classes > 1 else None
    labels = np.asarray(labels)
    is_integer = labels.dtype.kind in "biu"
    if classes == 1:
        is_binary = is_integer and labels.size > 0 and labels.min() >= 0 and labels.max() <= 1
        return Metric("binary_accuracy", threshold) if is_binary else Metric("mean_absolute_error")
    if labels.shape == outputs.shape:
        one_hot = bool(np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(axis=-1) == 1))
        return Metric("accuracy" if one_hot else "mean_absolute_error")
    return Metric("accuracy" if is_integer else "mean_absolute_error")


def decisions(metric: Metric | None, outputs: np.ndarray) -> np.ndarray | None:
    """What the outputs decide: classes, or bools for a binary task; None where there is nothing to decide."""
    if metric is None or metric.name == "mean_absolute_error":
        return None
    return outputs > metric.threshold if metric.name == "binary_accuracy" else outputs.argmax(axis=-1)


def _like(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    require(
        labels.size == outputs.size,
        f"labels have shape {labels.shape}, the output has {outputs.shape}: they must have as many values",
    )
    return labels.reshape(outputs.shape)


def _classes(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    if labels.shape == outputs.shape:
        return labels.argmax(axis=-1)
    expected = outputs.shape[:-1]
    require(
        labels.size == int(np.prod(expected)),
        f"labels have shape {labels.shape}, expected {expected} integers or {outputs.shape} one-hot values",
    )
    count = outputs.shape[-1]
    require(
        labels.min() >= 0 and labels.max() < count,
        f"labels go from {labels.min()} to {labels.max()}, but the output has {count} classes: expected 0 to "
        f"{count - 1}",
    )
    return labels.reshape(expected)
