"""What a search may aim at: numbers that a chain's report holds."""

from collections.abc import Mapping, Sequence

from tfopt.config import did_you_mean, require
from tfopt.report import Report

# Whether more is better.
OBJECTIVES: Mapping[str, bool] = {
    "accuracy": True,
    "val_accuracy": True,
    "loss": False,
    "val_loss": False,
    "mean_absolute_error": False,
    "val_mean_absolute_error": False,
    "bytes": False,
    "gzip_bytes": False,
    "zstd_bytes": False,
    "median_ms": False,
    "p90_ms": False,
}


def check_objectives(objectives: Sequence[str]) -> tuple[str, ...]:
    """The objectives, at least one, each known and named once.

    >>> check_objectives(["accuracy", "byte"])
    Traceback (most recent call last):
    ValueError: there is no objective 'byte': did you mean bytes? ...
    """
    if isinstance(objectives, str):
        objectives = (objectives,)
    require(len(objectives) > 0, f"objectives is empty: name one or more of {', '.join(OBJECTIVES)}")
    for name in objectives:
        require(
            name in OBJECTIVES, f"there is no objective {name!r}: {did_you_mean(name, OBJECTIVES, len(OBJECTIVES))}"
        )
    require(len(set(objectives)) == len(objectives), f"an objective is named twice: {', '.join(objectives)}")
    return tuple(objectives)


def measured(report: Report, name: str) -> float | None:
    """The newest value of an objective in a report; None where it was not measured.

    `val_...` is that of the last epoch, on the validation split; the others are those of the file where there is one,
    else of the model, on the test split.

    >>> measured(Report("digits", chain=({"variant": "int8 file", "bytes": 100},)), "bytes")
    100
    """
    places: list[Mapping[str, float | None]] = [report.artefacts.get("tflite", {}), *reversed(report.chain)]
    places += [entry.metrics.get("after", {}) for entry in reversed(report.stages)]
    if name.startswith("val_"):
        places = [
            {key: values[-1] for key, values in entry.history.items() if values} for entry in reversed(report.stages)
        ]
    return next((place[name] for place in places if place.get(name) is not None), None)
