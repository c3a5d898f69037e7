"""What metrics with intervals say, in plain words: pure functions of an artefact's "metrics"."""

from collections.abc import Iterable, Mapping
from typing import Any

from tfopt.report import units

Found = Mapping[str, Any]

# What was measured, by its key.
SUBJECTS = {"keras": "Keras model", "tflite": "File"}
TITLES = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "auc": "AUC",
    "mae": "MAE",
    "rmse": "RMSE",
    "mape": "MAPE",
    "pearson": "Pearson",
}
# Rows of a table by class; of more classes the worst are shown.
MOST_ROWS = 20
_FRACTIONS = ("accuracy", "precision", "recall", "f1", "mape")
_UP_TO_ONE = ("auc", "pearson")
_CONFUSED = 5


def measured(artefacts: Mapping[str, Any]) -> dict[str, Mapping[str, Found]]:
    """The metrics of each artefact that has some, by its name."""
    found = {name: each.get("metrics") for name, each in artefacts.items() if isinstance(each, dict)}
    return {name: each for name, each in found.items() if each}


def figure(name: str, score: Found) -> str:
    """A metric with its interval; why it has none, where it is not defined.

    >>> figure("accuracy", {"value": 0.8412, "low": 0.8291, "high": 0.8523})
    '84.1 % (82.9 to 85.2)'
    >>> figure("mae", {"value": 12.345, "low": 11.5, "high": 13.25})
    '12.35 (11.5 to 13.25)'
    >>> figure("auc", {"value": None, "reason": "all labels are of class cat"})
    'not defined: all labels are of class cat'
    """
    value, ends = score["value"], [each for each in (score.get("low"), score.get("high")) if each is not None]
    if value is None:
        return f"not defined: {score.get('reason') or 'no reason was given'}"
    # A digit more where the ends would look alike.
    more = bool(ends) and ends[1] - ends[0] < 0.01

    def write(number: float) -> str:
        if name in _FRACTIONS:
            return f"{100 * number:.{1 + more}f}"
        return f"{number:.{3 + more}f}" if name in _UP_TO_ONE else f"{number:.4g}"

    unit = " %" if name in _FRACTIONS else ""
    return f"{write(value)}{unit}" + (f" ({' to '.join(map(write, ends))})" if ends else "")


def rows(metrics: Mapping[str, Found]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: a metric a row, what was measured by column."""
    names = list(dict.fromkeys(name for found in metrics.values() for name in found["values"]))
    heads = ["Metric", *(SUBJECTS.get(key, key) for key in metrics)]
    return heads, [
        [
            TITLES.get(name, name),
            *(
                figure(name, found["values"][name]) if name in found["values"] else units.NOT_MEASURED
                for found in metrics.values()
            ),
        ]
        for name in names
    ]


def conditions(metrics: Mapping[str, Found]) -> str:
    """What the figures in brackets are.

    >>> conditions({"keras": {"level": 0.95, "resamples": 1000, "examples": 360}})
    'In brackets: the 95 % confidence interval, by 1,000 bootstrap resamples of the 360 test examples.'
    """
    found = next(iter(metrics.values()))
    return (
        f"In brackets: the {units.share(found['level'])} confidence interval, by {units.count(found['resamples'])} "
        f"bootstrap resamples of the {units.count(found['examples'])} test examples."
    )


def remarks(metrics: Mapping[str, Found]) -> list[str]:
    """What to know of the values: what they are means of, what was left out, which interval says little."""
    said: dict[str, list[str]] = {}
    for key, found in metrics.items():
        subject = SUBJECTS.get(key, key)
        for sentence in [*found["notes"], *_doubts(found), *_confused(found)]:
            said.setdefault(sentence, []).append(subject)
    return [
        sentence if len(subjects) == len(metrics) else f"{', '.join(subjects)}: {sentence}"
        for sentence, subjects in said.items()
    ]


def worst(found: Found) -> tuple[list[Found], str]:
    """The rows of the table by class, and a sentence on those that are left out; the worst first where some are."""
    classes = found["classes"]
    if len(classes) <= MOST_ROWS:
        return classes, ""
    judged = sorted((row for row in classes if row["f1"] is not None), key=lambda row: row["f1"])
    shown, absent = judged[:MOST_ROWS], len(classes) - len(judged)
    without = f", {units.count(absent)} of them without labels" if absent else ""
    return shown, (
        f"The {len(shown)} classes with the lowest F1. The other {units.count(len(classes) - len(shown))} are left "
        f"out{without}; report.json has all."
    )


CLASS_HEADS = ["Class", "Labels", "Precision", "Recall", "F1"]


def class_rows(classes: Iterable[Found]) -> list[list[str]]:
    """The cells of the table by class, as `CLASS_HEADS` names them."""
    return [
        [
            f"{row['name']} ({row['reason']})" if row.get("reason") else row["name"],
            units.value("labels", row["support"]),
            *(units.percent(row[key], 1) for key in ("precision", "recall", "f1")),
        ]
        for row in classes
    ]


def sentences(artefacts: Mapping[str, Any]) -> list[str]:
    """One for each model and file: its metrics in a line.

    >>> score = {"value": 0.8412, "low": 0.8291, "high": 0.8523}
    >>> sentences({"tflite": {"metrics": {"tflite": {"values": {"accuracy": score, "f1": score}}}}})
    ['File: accuracy 84.1 % (82.9 to 85.2), F1 84.1 % (82.9 to 85.2).']
    """
    return [
        f"{SUBJECTS.get(key, key)}: {', '.join(_named(name, score) for name, score in found['values'].items())}."
        for metrics in measured(artefacts).values()
        for key, found in metrics.items()
    ]


def _named(name: str, score: Found) -> str:
    title = TITLES.get(name, name)
    return f"{title.lower() if title.istitle() and len(title) > 2 else title} {figure(name, score)}"


def _doubts(found: Found) -> list[str]:
    """Of values that are defined, what is to be said of their intervals."""
    return [
        f"{TITLES.get(name, name)}: {score['reason']}."
        for name, score in found["values"].items()
        if score["value"] is not None and score.get("reason")
    ]


def _confused(found: Found) -> list[str]:
    """The pairs of classes that are taken for each other most often."""
    names = [row["name"] for row in found["classes"]]
    pairs = [
        (count, true, decided)
        for true, row in enumerate(found["confusion"])
        for decided, count in enumerate(row)
        if count and true != decided
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    if len(names) < 3 or not pairs:
        return []
    told = [
        f"{names[true]} for {names[decided]} ({units.value('labels', count)} of "
        f"{units.value('labels', sum(found['confusion'][true]))})"
        for count, true, decided in pairs[:_CONFUSED]
    ]
    return [f"Most often mistaken: {', '.join(told)}."]
