"""One trial: a chain in a folder of its own, watched after each epoch, or each stage."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfopt.chain import run
from tfopt.files import atomic_path, remove
from tfopt.report import Report
from tfopt.stage import Stage, Work
from tfopt.train.watch import watching
from tfopt.tune.objectives import OBJECTIVES, measured
from tfopt.tune.recipe import Recipe, build
from tfopt.workdir import claim, identity

# Called with the number of an epoch or a stage and the objective after it; whether the trial should end there.
Look = Callable[[int, float], bool]


@dataclasses.dataclass(frozen=True)
class Job:
    """What all trials of a search have in common."""

    recipe: Recipe
    name: str
    objectives: tuple[str, ...]
    work: Work
    workdir: pathlib.Path

    def folder(self, number: int) -> pathlib.Path:
        """Where a trial keeps its files."""
        return self.workdir / "trials" / f"{number:04d}"

    def __getstate__(self) -> dict[str, Any]:
        # A strategy belongs to its process; that of another one is one device again.
        work = {name: value for name, value in vars(self.work).items() if name not in ("strategy", "report")}
        return {**vars(self), "work": work}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "work": Work(**state["work"])})


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a trial ended: "complete" with values, "pruned", or "failed" with a reason.

    "unmeasured": the chain ended well, and its report lacks an objective.
    """

    state: str
    values: tuple[float, ...] = ()
    reason: str = ""


class _Pruned(Exception):
    """The trial is bad."""


def run_trial(job: Job, number: int, values: Mapping[str, Any], look: Look) -> Ended:
    """Runs the chain with these values; goes on where an earlier attempt was killed."""
    folder = job.folder(number)
    try:
        stages = build(job.recipe, values)
        work = job.work.replace(workdir=folder)
        _share(job, stages, work)
        watch = _Watch(job.objectives[0], stages, look if len(job.objectives) == 1 else _never)
        _look_back(folder, stages, watch)
        with watching(watch.epoch):
            work = run([_Watched(stage, watch) for stage in stages], work, job.name)
    except _Pruned:
        # Nobody goes on from its checkpoints.
        for partial in folder.glob("*.partial"):
            remove(partial)
        return Ended("pruned")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is listed, and other trials may do better
        return Ended("failed", reason=f"{type(error).__name__}: {error}")
    found = [measured(work.report, name) for name in job.objectives]
    for name, value in zip(job.objectives, found, strict=True):
        if value is None:
            return Ended("unmeasured", reason=name)
    return Ended("complete", tuple(float(value) for value in found if value is not None))


class _Watch:
    """Looks at the objective as the chain goes: after each epoch where one can tell it, else after each stage."""

    def __init__(self, objective: str, stages: Sequence[Stage], look: Look) -> None:
        self._objective, self._look = objective, look
        # What an epoch tells of an objective is its value on the validation split. Steps of both kinds are not mixed: a
        # pruner compares trials at the same step.
        self._key = f"val_{objective.removeprefix('val_')}"
        self._by_epoch = self._key in OBJECTIVES and any(stage.trains for stage in stages)
        self._epochs = 0

    def epoch(self, logs: Mapping[str, Any]) -> None:
        """Looks at an epoch; these are counted along the whole chain."""
        self._epochs += 1
        if self._by_epoch and self._key in logs:
            self._ask(self._epochs, logs[self._key])

    def stage(self, report: Report) -> None:
        """Looks at a stage that is done."""
        value = measured(report, self._objective)
        if not self._by_epoch and value is not None:
            self._ask(len(report.stages), value)

    def stage_of_before(self, report: Report) -> None:
        """Looks at a stage that was done by an earlier attempt or another trial, its epochs among it."""
        history = report.stages[-1].history
        for epoch in range(max(map(len, history.values()), default=0)):
            self.epoch({key: values[epoch] for key, values in history.items() if epoch < len(values)})
        self.stage(report)

    def _ask(self, step: int, value: float) -> None:
        if self._look(step, value):
            raise _Pruned


def _never(step: int, value: float) -> bool:
    return False


def _look_back(folder: pathlib.Path, stages: Sequence[Stage], watch: _Watch) -> None:
    """Looks at the stages that were finished before, by this trial or another."""
    for number, stage in enumerate(stages, 1):
        done = folder / f"{number:02d}-{stage.name}" / "stage.json"
        if not done.exists():
            break
        watch.stage_of_before(Report.from_dict(json.loads(done.read_text(encoding="utf-8"))["report"]))


@dataclasses.dataclass(frozen=True, repr=False)
class _Watched(Stage):
    """A stage that is looked at when it is done; to the chain and its folder it is the stage itself."""

    stage: Stage
    watch: _Watch

    @property
    def name(self) -> str:
        return self.stage.name

    def validate(self, work: Work) -> Work:
        return self.stage.validate(work)

    def folder(self, work: Work) -> pathlib.Path:
        return self.stage.folder(work)

    def __call__(self, work: Work) -> Work:
        work = self.stage(work)
        self.watch.stage(work.report)
        return work

    def __repr__(self) -> str:
        return repr(self.stage)


def _share(job: Job, stages: Sequence[Stage], work: Work) -> None:
    """Takes over the finished stages of another trial, as far as that one did the same."""
    assert work.workdir is not None
    work.workdir.mkdir(parents=True, exist_ok=True)
    mine = json.loads(json.dumps(identity(job.name, stages, work)))
    claim(work.workdir, mine)
    best: list[pathlib.Path] = []
    for theirs in sorted(work.workdir.parent.glob("*/run.json")):
        if theirs.parent != work.workdir:
            best = max(best, _common(json.loads(theirs.read_text(encoding="utf-8")), mine, theirs.parent), key=len)
    for folder in best:
        if not (work.workdir / folder.name).exists():
            with atomic_path(work.workdir / folder.name) as temporary:
                shutil.copytree(folder, temporary)


def _common(theirs: Mapping[str, Any], mine: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """The finished stages of another trial that begin this one too."""
    found: list[pathlib.Path] = []
    if any(theirs.get(key) != value for key, value in mine.items() if key != "stages"):
        return found
    for number, (one, other) in enumerate(zip(theirs["stages"], mine["stages"], strict=False), 1):
        done = next(folder.glob(f"{number:02d}-*/stage.json"), None)
        # A report that names files of the other trial belongs to that one.
        if one != other or done is None or str(folder) in done.read_text(encoding="utf-8"):
            break
        found.append(done.parent)
    return found
