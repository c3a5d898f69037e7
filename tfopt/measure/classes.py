"""Metrics of decisions between classes: accuracy, precision, recall, F1, AUC, the table by class, the confusion."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt.config import require
from tfopt.measure.bootstrap import Statistic
from tfopt.measure.observations import Observations

# Labels times classes; of more scores, as of the pixels of many pictures, the AUC's interval would take minutes.
MOST_SCORES = 2_000_000


class Decided:
    """Labels with the classes that were decided for them.

    Args:
      seen: targets and outputs.
      binary: one output tells two classes apart; else each class has one.
      threshold: for binary, outputs above it mean class 1.
      names: of the classes; empty: their numbers.
    """

    def __init__(self, seen: Observations, binary: bool, threshold: float, names: Sequence[str]):
        self.seen, self.binary = seen, binary
        self.count = 2 if binary else seen.outputs.shape[-1]
        require(
            len(names) in (0, self.count),
            f"there are {len(names)} class names, the first of them {', '.join(map(str, names[:5]))}, but the output "
            f"tells {self.count} classes apart: give one for each, or none",
        )
        self.names = [str(each) for each in names] or [str(number) for number in range(self.count)]
        self.targets = seen.targets.astype(np.int64)
        self.decided = (seen.outputs > threshold).astype(np.int64) if binary else seen.outputs.argmax(axis=-1)
        self.scores = seen.outputs if binary else _probabilities(seen.outputs)

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """Labels by true class (row) and decided class (column)."""
        from sklearn import metrics

        return metrics.confusion_matrix(
            self.targets, self.decided, labels=range(self.count), sample_weight=self.seen.sample_weight
        )

    @functools.cached_property
    def _by_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of each class; NaN where they are not defined."""
        from sklearn import metrics

        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            self.targets,
            self.decided,
            labels=range(self.count),
            sample_weight=self.seen.sample_weight,
            zero_division=np.nan,
        )
        return precision, recall, np.where(self._has_labels, f1, np.nan)

    @property
    def _has_labels(self) -> np.ndarray:
        return self.confusion.sum(axis=1) > 0

    @property
    def _is_chosen(self) -> np.ndarray:
        return self.confusion.sum(axis=0) > 0

    @property
    def _scored(self) -> list[int]:
        """Classes that have an AUC: some labels are theirs and some are not."""
        judged = (1,) if self.binary else range(self.count)
        has = self._has_labels
        return [number for number in judged if has[number] and has.sum() > 1]

    def values(self) -> dict[str, tuple[float | None, str]]:
        """Each metric, or None with the reason."""
        from sklearn import metrics

        weights = self.seen.sample_weight
        found: dict[str, tuple[float | None, str]]
        found = {"accuracy": (float(metrics.accuracy_score(self.targets, self.decided, sample_weight=weights)), "")}
        by_class = dict(zip(("precision", "recall", "f1"), self._by_class, strict=True))
        if self.binary:
            absent = f"no label is of class {self.names[1]}"
            reasons = {"precision": f"no decision is for class {self.names[1]}", "recall": absent, "f1": absent}
            found |= {
                name: (None, reasons[name]) if np.isnan(each[1]) else (float(each[1]), "")
                for name, each in by_class.items()
            }
        else:
            found |= {
                # A class that was never chosen has no precision; left out, it would raise the mean.
                name: (float(np.mean(np.nan_to_num(each[self._has_labels]))), "")
                for name, each in by_class.items()
            }
        areas = [
            metrics.roc_auc_score(self.targets == number, self._scores_of(number), sample_weight=weights)
            for number in self._scored
        ]
        if not areas:
            found["auc"] = (None, f"all labels are of class {self.names[self.targets[0]]}: it needs others")
            return found
        many = f"no interval: {len(self.targets):,} labels of {self.count} classes are more than are resampled"
        found["auc"] = (float(np.mean(areas)), "" if self._is_resampled else many)
        return found

    @property
    def _is_resampled(self) -> bool:
        """Whether the AUC is computed for each resample."""
        return len(self.targets) * len(self._scored) <= MOST_SCORES

    def table(self) -> list[dict[str, Any]]:
        """One row for each class, see `ClassScore`."""
        support = self.confusion.sum(axis=1).tolist()
        return [
            {
                "name": name,
                "support": support[number],
                **{
                    key: _number(each[number])
                    for key, each in zip(("precision", "recall", "f1"), self._by_class, strict=True)
                },
                "reason": self._reason(number),
            }
            for number, name in enumerate(self.names)
        ]

    def _reason(self, number: int) -> str:
        if not self._has_labels[number]:
            return "no labels of this class"
        return "" if self._is_chosen[number] else "never decided for"

    def notes(self) -> list[str]:
        """What the values mean, and what is left out of them."""
        if self.binary:
            return [f"Precision, recall and F1 are those of class {self.names[1]}."]
        notes = ["Precision, recall, F1 and AUC are means over the classes, each of the same weight."]
        absent, unchosen = ~self._has_labels, self._has_labels & ~self._is_chosen
        if absent.any():
            notes.append(f"{_counted(absent)} no labels and {_is(absent)} left out of the means.")
        if unchosen.any():
            notes.append(f"{_counted(unchosen)} labels and {_is(unchosen)} never decided for: precision counts as 0.")
        return notes

    def statistic(self) -> Statistic:
        """The same metrics of resamples, from sums over the examples."""
        seen, count = self.seen, self.count
        right = self.decided == self.targets
        rows = [self.targets[right], count + self.decided, 2 * count + self.targets]
        columns = [seen.example[right], seen.example, seen.example]
        sums = _sums(np.concatenate(rows), np.concatenate(columns), self._weights_of(right), 3 * count, seen.examples)
        areas = [
            auc_statistic(self._scores_of(number), self.targets == number, seen.weights, seen.example, seen.examples)
            for number in (self._scored if self._is_resampled else ())
        ]

        def resampled(counts: np.ndarray) -> dict[str, np.ndarray]:
            hits, chosen, labels = (sums @ counts).reshape(3, count, -1)
            there = labels > 0
            precision, recall = _ratio(hits, chosen), _ratio(hits, labels)
            f1 = np.where(there, _ratio(2 * hits, chosen + labels), np.nan)
            found = {"accuracy": hits.sum(axis=0) / labels.sum(axis=0)}
            for name, each in (("precision", precision), ("recall", recall), ("f1", f1)):
                found[name] = each[1] if self.binary else _mean(np.nan_to_num(each), there)
            drawn = np.array([area(counts) for area in areas]).reshape(len(areas), counts.shape[1])
            found["auc"] = _mean(drawn, ~np.isnan(drawn))
            return found

        return resampled

    def _weights_of(self, right: np.ndarray) -> np.ndarray:
        return np.concatenate([self.seen.weights[right], self.seen.weights, self.seen.weights])

    def _scores_of(self, number: int) -> np.ndarray:
        return self.scores if self.binary else self.scores[:, number]


def auc_statistic(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, example: np.ndarray, examples: int
) -> Any:
    """The area under the ROC curve of resamples: the share of pairs of a positive and a negative in the right order.

    Each negative only matters by the positives' scores that it lies between or equals, so that a resample takes no
    sorting. Ties count half.

    Args:
      scores: (labels,).
      positive: (labels,) bools.
      weights: (labels,).
      example: (labels,), which example each belongs to.
      examples: how many there are.

    Returns:
      A function from counts of shape (examples, resamples) to areas of shape (resamples,), NaN where there are no
      pairs.

    Source: Hanley and McNeil, The meaning and use of the area under a ROC curve, 1982.

    >>> labels = np.array([False, False, True, True])
    >>> area = auc_statistic(np.array([0.1, 0.4, 0.35, 0.8]), labels, np.ones(4), np.arange(4), 4)
    >>> area(np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
    array([0.75, 1.  ])
    """
    levels = np.unique(scores[positive])
    # Even: between two levels; odd: equal to one.
    place = np.searchsorted(levels, scores, "left") + np.searchsorted(levels, scores, "right")
    below = 2 * len(levels) + 1
    sums = _sums(np.where(positive, below + place // 2, place), example, weights, below + len(levels), examples)

    def area(counts: np.ndarray) -> np.ndarray:
        totals = sums @ counts
        positives, passed = totals[below:], np.cumsum(totals[:below], axis=0)
        pairs = positives.sum(axis=0) * passed[-1]
        return _ratio((positives * (passed[:-1:2] + passed[1::2])).sum(axis=0) / 2, pairs)

    return area


def _sums(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, count: int, examples: int) -> Any:
    """The matrix that, times the counts of the examples, sums weights by row."""
    import scipy.sparse

    return scipy.sparse.coo_array((weights, (rows, columns)), shape=(count, examples)).tocsr()


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The quotient, NaN where nothing is divided by."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The mean over the first axis of the values that are there."""
    return _ratio(np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0))


def _probabilities(outputs: np.ndarray) -> np.ndarray:
    if outputs.min() >= 0 and outputs.max() <= 1:
        return outputs
    import scipy.special

    return scipy.special.softmax(outputs, axis=-1)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _counted(which: np.ndarray) -> str:
    return "1 class has" if which.sum() == 1 else f"{which.sum():,} classes have"


def _is(which: np.ndarray) -> str:
    return "is" if which.sum() == 1 else "are"
