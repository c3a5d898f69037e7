"""What `reach` found."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from tfopt.files import atomic_path, write_text
from tfopt.record import Record
from tfopt.report import units
from tfopt.tune.candidate import Candidate
from tfopt.tune.goal import COSTS, Goal
from tfopt.tune.pareto import pareto_front
from tfopt.tune.reference import Reference

MODEL = "model.tflite"
TITLES = {"bytes": "bytes", "gzip_bytes": "gzip bytes", "median_ms": "latency, ms"}


@dataclasses.dataclass(frozen=True)
class Reached(Record):
    """The files that were tried.

    Args:
      goal: the limits.
      reference: the float model and its plain int8 file.
      candidates: by number; 0 is the plain int8 file.
      notes: sentences for the reader.
      workdir: report.html and model.tflite among its files.
    """

    goal: Goal
    reference: Reference
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    workdir: pathlib.Path

    @property
    def measured(self) -> tuple[Candidate, ...]:
        """Those that did not fail."""
        return tuple(each for each in self.candidates if each.value is not None)

    @property
    def reached(self) -> bool:
        """Whether the best file keeps to all limits, on both the examples that decide and those that judge."""
        return not self.goal.excess(self.best.worst)

    @property
    def best(self) -> Candidate:
        """The file to take: within the limits, else the nearest.

        Of several within them, with limits on costs the most accurate, else that with the least product of compressed
        size and latency.
        """
        within = [each for each in self.measured if not self.goal.excess(each.worst)]
        if not within:
            return min(self.measured, key=lambda each: self.goal.distance(each.worst))
        if self.goal.costs:
            return min(within, key=lambda each: each.drop or 0.0)
        return min(within, key=lambda each: (each.gzip_bytes or 0) * (each.median_ms or 0.0))

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The Pareto front in the metric, both sizes and the latency; the best in the metric first."""
        rows = [[each.drop, each.bytes, each.gzip_bytes, each.median_ms] for each in self.measured]
        kept = pareto_front(np.array(rows, "float64"), [False] * 4)
        front = [each for each, is_kept in zip(self.measured, kept, strict=True) if is_kept]
        return tuple(sorted(front, key=lambda each: each.drop or 0.0))

    @property
    def limits(self) -> tuple[str, ...]:
        """What keeps the goal out of reach, in sentences; empty where it is reached."""
        if self.reached:
            return ()
        goal, said = self.goal, []
        within_costs = [each for each in self.measured if not set(goal.excess(each.worst)) - {"drop"}]
        if goal.max_drop is not None and within_costs and goal.costs:
            least = min(within_costs, key=lambda each: each.worst["drop"])
            said.append(
                f"accuracy: of the files that keep to {_costs(goal)}, candidate {least.number} loses the least, "
                f"{units.share(least.worst['drop'])} where {units.share(goal.max_drop)} is allowed"
            )
        if goal.max_drop is not None and not goal.costs:
            least = min(self.measured, key=lambda each: each.worst["drop"])
            said.append(
                f"accuracy: even candidate {least.number}, which loses the least, loses "
                f"{units.share(least.worst['drop'])} where {units.share(goal.max_drop)} is allowed"
            )
        within_drop = [each for each in self.measured if "drop" not in goal.excess(each.worst)]
        for cost, limit in goal.costs.items():
            smallest = min(within_drop, key=lambda each: each[cost], default=None)
            if smallest is not None and smallest[cost] > limit:
                allowed = "" if goal.max_drop is None else "of the files within the drop, "
                said.append(
                    f"{TITLES[cost]}: {allowed}candidate {smallest.number} has the least, "
                    f"{units.value(cost, smallest[cost])} where {units.value(cost, limit)} is allowed"
                )
        return tuple(said) or ("no single limit: each is kept by some file, all together by none",)

    @property
    def summary(self) -> str:
        """The result in a sentence."""
        best = self.best
        verdict = "Reached" if self.reached else "Not reached; nearest"
        return f"{verdict}: candidate {best.number} ({best.option}), {self.describe(best)}."

    def describe(self, each: Candidate) -> str:
        """What a candidate is worth, and what it costs, beside the plain int8 file."""
        metric, reference = self.reference.metric, self.reference
        value = units.value(metric, each.test_value)
        return (
            f"{metric} {value} on the test split ({drop_text(each.test_drop)} against the float model), "
            f"{units.count(each.bytes)} bytes, {units.count(each.gzip_bytes)} after gzip "
            f"({units.ratio(reference.gzip_bytes, each.gzip_bytes)} of the plain int8 file), "
            f"{units.milliseconds(each.median_ms)} ms ({units.ratio(reference.median_ms, each.median_ms)})"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with what follows from them."""
        return {
            "goal": dataclasses.asdict(self.goal),
            "reached": self.reached,
            "summary": self.summary,
            "limits": list(self.limits),
            "best": self.best.number,
            "front": [each.number for each in self.front],
            "reference": self.reference.to_dict(),
            "candidates": [each.to_dict() for each in self.candidates],
            "notes": list(self.notes),
        }


def drop_text(drop: float | None) -> str:
    """A drop with its sign turned: what is lost is below 0.

    >>> drop_text(0.0125), drop_text(-0.01), drop_text(None)
    ('-1.25 points', '+1.00 points', '')
    """
    return units.points(0.0, None if drop is None else -drop)


def write_reports(found: Reached) -> None:
    """Writes model.tflite and the reports to the workdir, each atomically."""
    from tfopt.tune import reached_page

    with atomic_path(found.workdir / MODEL) as temporary:
        shutil.copyfile(found.workdir / found.best.path, temporary)
    document = json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(found.workdir / "report.json", document + "\n")
    write_text(found.workdir / "report.md", reached_page.markdown(found))
    write_text(found.workdir / "report.html", reached_page.page(found))


def _costs(goal: Goal) -> str:
    return ", ".join(f"{name}={getattr(goal, name):g}" for name in COSTS if getattr(goal, name) is not None)
