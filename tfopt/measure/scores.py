"""How good outputs are, by the metrics of their task, with bootstrap confidence intervals."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfopt.config import require
from tfopt.measure import classes, regression
from tfopt.measure.bootstrap import bootstrap, percentile_interval, require_level
from tfopt.measure.observations import Observations, observe
from tfopt.record import Record

Task = Literal["binary", "multi-class", "regression"]
# More classes than these make a matrix that nobody reads and a report that is mostly zeros.
MOST_CONFUSED = 100
TASKS: tuple[Task, ...] = ("binary", "multi-class", "regression")


@dataclasses.dataclass(frozen=True)
class Score(Record):
    """One metric.

    Args:
      value: None where it is not defined.
      low: lower end of its confidence interval; None where there is none.
      high: upper end; likewise.
      reason: why there is no value or no interval, or what to know of the interval; empty: nothing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ClassScore(Record):
    """One class.

    Args:
      name: of the class.
      support: labels of this class; their weights' sum where there are weights.
      precision: share of the decisions for it that are right; None where there are none.
      recall: share of its labels that are found; None without labels.
      f1: harmonic mean of both; None without labels.
      reason: why a value is None; empty where none is.
    """

    name: str
    support: float
    precision: float | None
    recall: float | None
    f1: float | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Metrics(Record):
    """How good a model's outputs are.

    Args:
      task: "binary", "multi-class" or "regression".
      examples: how many count: those with a weight above 0.
      labels: how many labels they have; more than examples for sequences and pictures.
      values: for classes "accuracy", "precision", "recall", "f1" and "auc": of class 1 where the task is binary, else
        means over the classes; for regression "mae", "rmse", "mape" (a fraction) and "pearson".
      classes: one row for each class.
      confusion: labels (or their weights) by true class (row) and decided class (column).
      level: confidence of the intervals, in (0, 1).
      resamples: of the bootstrap.
      notes: sentences for the reader: what was left out of a mean, and why.
    """

    task: Task
    examples: int
    labels: int
    values: dict[str, Score]
    classes: list[ClassScore]
    confusion: list[list[float]]
    level: float
    resamples: int
    notes: list[str]

    def to_report(self) -> dict[str, Any]:
        """As plain values for a report; of very many classes without the confusion, and with a note that says so."""
        values, count = self.to_dict(), len(self.classes)
        if count > MOST_CONFUSED:
            values["confusion"] = []
            values["notes"].append(f"The confusion matrix is left out: it would have {count:,} rows and columns.")
        return values


def score(
    task: Task,
    targets: Any,
    outputs: Any,
    weights: Any = None,
    *,
    threshold: float = 0.5,
    class_names: Sequence[str] = (),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Metrics:
    """Scores outputs against targets.

    The intervals are percentiles over resamples of whole examples: the labels of one example, such as the steps of a
    sequence, are no independent draws.

    Args:
      task: "binary", "multi-class" or "regression".
      targets: multi-class: integers of shape (examples, …), or as the outputs: one-hot or shares, of which the largest
        counts. binary: 0 and 1, as many as outputs; above 0.5 means 1. regression: as many numbers as outputs.
      outputs: multi-class: (examples, …, classes), probabilities or logits; those outside [0, 1] are taken for logits,
        and their softmax makes the AUC. binary: (examples, …), several to an example are taken together.
        regression: (examples, …).
      weights: at least 0, of shape (examples,) or that of the labels; 0 leaves a label out, as a mask does. None: all
        count alike.
      threshold: for binary, outputs above it mean 1: 0.5 for probabilities, 0 for logits.
      class_names: one for each class; empty: their numbers.
      level: confidence of the intervals, in (0, 1).
      resamples: of the bootstrap, at least 1.
      seed: the same seed gives the same intervals.

    Raises:
      ValueError: shapes, classes or weights that do not fit, no examples, NaN, or a value out of range.

    >>> found = score("binary", [0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9])
    >>> found.values["accuracy"].value, found.values["auc"].value, found.confusion
    (0.75, 1.0, [[1, 1], [0, 2]])
    """
    require(task in TASKS, f"task must be one of {', '.join(TASKS)}, received {task!r}")
    require(resamples >= 1, f"resamples must be at least 1, received {resamples!r}")
    require_level(level)
    seen = observe(task, targets, outputs, weights)
    if task == "regression":
        found, statistic, rows, confusion = regression.values(seen), regression.statistic(seen), [], []
        notes: list[str] = []
    else:
        decided = classes.Decided(seen, task == "binary", threshold, class_names)
        found, statistic, notes = decided.values(), decided.statistic(), decided.notes()
        rows = [ClassScore(**row) for row in decided.table()]
        confusion = decided.confusion.tolist()
    drawn = bootstrap(statistic, seen.examples, resamples, seed)
    return Metrics(
        task=task,
        examples=seen.examples,
        labels=len(seen.targets),
        values={name: _score(value, why, drawn[name], seen, level) for name, (value, why) in found.items()},
        classes=rows,
        confusion=confusion,
        level=level,
        resamples=resamples,
        notes=notes + _notes(seen),
    )


def _score(value: float | None, reason: str, drawn: np.ndarray, seen: Observations, level: float) -> Score:
    if reason:
        return Score(value, reason=reason)
    if seen.examples == 1:
        return Score(value, reason="one example has no spread")
    found = percentile_interval(drawn, level)
    return Score(value, found.low, found.high, found.reason)


def _notes(seen: Observations) -> list[str]:
    notes = []
    if len(seen.targets) > seen.examples:
        notes.append(f"{len(seen.targets):,} labels of {seen.examples:,} examples, which are resampled whole.")
    if seen.left_out:
        notes.append(f"{seen.left_out:,} labels have the weight 0 and are left out.")
    if seen.weighted:
        notes.append("Each label counts as much as its weight.")
    return notes
