"""Targets, outputs and weights as flat arrays, checked."""

import dataclasses
from typing import Any

import numpy as np

from tfopt.config import require


@dataclasses.dataclass(frozen=True, eq=False)
class Observations:
    """Labels that count, with what the model made of each.

    Args:
      targets: (labels,); class numbers for multi-class, bools for binary, numbers for regression.
      outputs: (labels,); for multi-class (labels, classes).
      weights: (labels,), above 0.
      example: (labels,), the number of the example that each belongs to.
      examples: how many there are.
      weighted: whether the weights differ.
      left_out: labels of weight 0, which are not among these.
    """

    targets: np.ndarray
    outputs: np.ndarray
    weights: np.ndarray
    example: np.ndarray
    examples: int
    weighted: bool
    left_out: int

    @property
    def sample_weight(self) -> np.ndarray | None:
        """The weights as scikit-learn takes them: None where all are alike, so that counts stay whole numbers."""
        return self.weights if self.weighted else None


def observe(task: str, targets: Any, outputs: Any, weights: Any) -> Observations:
    """Flattens what `score` was given, leaves labels of weight 0 out, and numbers the examples that are left."""
    targets, outputs = np.asarray(targets), np.asarray(outputs)
    require(outputs.ndim >= 1 and outputs.size > 0, f"there are no examples: the outputs have shape {outputs.shape}")
    for name, values in (("targets", targets), ("outputs", outputs)):
        require(
            values.dtype.kind in "biuf" or values.dtype.name == "bfloat16",
            f"{name} must be numbers, received dtype {values.dtype}",
        )
        bad = values.size - int(np.isfinite(values).sum())
        require(bad == 0, f"{name} hold {bad:,} NaN or infinite values of {values.size:,}: nothing can be counted")
    if task == "multi-class":
        shape = outputs.shape[:-1]
        flat = _numbers(targets, outputs).ravel()
        outputs = outputs.reshape(-1, outputs.shape[-1])
    else:
        shape = outputs.shape
        require(
            targets.size == outputs.size,
            f"targets have shape {targets.shape}, the outputs {outputs.shape}: they must have as many values",
        )
        flat, outputs = targets.ravel().astype(np.float64), outputs.ravel()
        if task == "binary":
            require(
                flat.min() >= 0 and flat.max() <= 1,
                f"targets go from {flat.min():g} to {flat.max():g}, but one output tells two classes apart: expected "
                "0 and 1",
            )
            flat = flat > 0.5
    each = _weights(weights, shape)
    kept = each > 0
    require(bool(kept.any()), "all weights are 0: give at least one label a weight above 0")
    numbers, example = np.unique(np.repeat(np.arange(shape[0]), kept.size // shape[0])[kept], return_inverse=True)
    each = each[kept]
    return Observations(
        targets=flat[kept],
        outputs=outputs[kept].astype(np.float64),
        weights=each,
        example=example,
        examples=len(numbers),
        weighted=bool(each.min() != each.max()),
        left_out=int(kept.size - kept.sum()),
    )


def _numbers(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The number of each label's class."""
    count = outputs.shape[-1]
    require(
        outputs.ndim >= 2 and count >= 2,
        f"outputs have shape {outputs.shape}, expected (examples, …, classes) with at least 2 classes; for one unit "
        'take task="binary"',
    )
    if targets.shape == outputs.shape:
        return targets.argmax(axis=-1)
    require(
        targets.size == outputs.size // count and len(targets) == len(outputs),
        f"targets have shape {targets.shape}, expected {outputs.shape[:-1]} integers or {outputs.shape} one-hot values",
    )
    whole = targets.astype(np.int64)
    require(
        bool(np.all(whole == targets)),
        'targets have fractions, expected the numbers of classes; for numbers take task="regression"',
    )
    require(
        whole.min() >= 0 and whole.max() < count,
        f"targets go from {whole.min()} to {whole.max()}, but the output has {count} classes: expected 0 to "
        f"{count - 1}",
    )
    return whole


def _weights(weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    """One weight for each label."""
    if weights is None:
        return np.ones(int(np.prod(shape)))
    given = np.asarray(weights).astype(np.float64)
    if given.size == np.prod(shape):
        given = given.reshape(shape)
    require(
        given.shape == shape[: given.ndim] and given.ndim >= 1,
        f"weights have shape {given.shape}, the labels {shape}: give one for each example or for each label",
    )
    require(
        bool(np.isfinite(given).all() and given.min() >= 0),
        f"weights must be finite and at least 0; they go from {given.min():g} to {given.max():g}",
    )
    widened = given.reshape(given.shape + (1,) * (len(shape) - given.ndim))
    return np.broadcast_to(widened, shape).ravel()
