"""`Stage` and `Work`: one step of a chain, and what travels along it.

A stage is a frozen dataclass that is its own configuration, called as `stage(work) -> work`. What it makes is
written to a folder of its own in the workdir, all at once, and read back from there: so a stage always starts
from files, whether the run was interrupted before it or not.
"""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfopt import evaluation, invariants
from tfopt.config import Config
from tfopt.data import Data, as_data
from tfopt.files import atomic_path, remove
from tfopt.invariants import Invariant
from tfopt.progress import stage_bar
from tfopt.report import Report, StageEntry, describe_environment
from tfopt.train.strategies import strategy
from tfopt.workdir import adopt, read_stage, with_fresh_model, write_stage
from tfopt.workers.peers import Peers


@dataclasses.dataclass(frozen=True)
class Work:
    """What travels along a chain. Immutable: a stage returns a new one.

    Args:
      model: a Keras 3 model, or None where a stage such as `Build` will make it.
      data: `Data`, or whatever `as_data` takes: arrays, a batched dataset, a dict of these by split.
      workdir: folder for what the stages write; None: a new temporary one.
      invariants: promises that every later stage must keep.
      report: what was done so far.
      seed: all randomness of the chain follows from it.
      trained: whether the weights are worth exporting; False for a model that `Build` has just made.
      snapshots: (stage label, model file) of every model along the chain, in order.
      strategy: on which devices and hosts stages train: a name, see `tfopt.train.strategy`, or a TensorFlow strategy.
    """

    model: keras.Model | None = None
    data: Data | None = None
    workdir: pathlib.Path | None = None
    invariants: tuple[Invariant, ...] = ()
    report: Report = dataclasses.field(default_factory=lambda: Report("", describe_environment()))
    seed: int = 0
    trained: bool = True
    snapshots: tuple[tuple[str, pathlib.Path], ...] = ()
    strategy: tf.distribute.Strategy | str = "one_device"

    def __post_init__(self) -> None:
        if isinstance(self.strategy, str):
            object.__setattr__(self, "strategy", strategy(self.strategy))
        if self.data is not None:
            object.__setattr__(self, "data", as_data(self.data))
        if self.workdir is not None:
            object.__setattr__(self, "workdir", pathlib.Path(self.workdir).expanduser().resolve())
        if self.model is not None and not isinstance(self.model, keras.Model):
            raise TypeError(
                f"model must be a Keras 3 model, received {type(self.model).__module__}."
                f"{type(self.model).__name__}; for a file or a Keras 2 model use tfopt.load_model"
            )

    def replace(self, **changes: Any) -> "Work":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_workdir(self) -> "Work":
        """The same with a workdir: a new temporary folder unless there is one."""
        if self.workdir is not None:
            return self
        return self.replace(workdir=pathlib.Path(tempfile.mkdtemp(prefix="tfopt-")))

    @property
    def finished(self) -> int:
        """The number of stages done."""
        return len(self.report.stages)

    @property
    def peers(self) -> Peers:
        """The processes that work on this chain together."""
        return Peers(self.strategy)

    def snapshot(self, stage: str = "") -> pathlib.Path:
        """The file of the model as the last stage of a name left it.

        Args:
          stage: the name, such as "Train"; "input" is the model that was handed over, "" the last one of any name.

        Raises:
          ValueError: no such stage has made or trained a model.
        """
        names = [label.partition("-")[2] for label, _ in self.snapshots]
        places = [place for place, name in enumerate(names) if stage in ("", name)]
        if not places:
            raise ValueError(
                f"no stage {stage!r} before this one has made or trained a model"
                + (f": there are {', '.join(dict.fromkeys(names))}" if names else "")
            )
        return self.snapshots[places[-1]][1]

    def need_model(self) -> keras.Model:
        """The model; a ValueError where there is none yet, or where it is not built."""
        if self.model is None:
            raise ValueError(
                "there is no model yet: pass Work(model=...), or put a stage that makes one (Build, LoadModel) "
                "before this one"
            )
        if not self.model.built or not self.model.weights:
            raise ValueError(
                f"the model {self.model.name!r} is not built, so it has no weights yet: add keras.Input(shape) "
                "as its first layer, call model.build(input_shape), or call it once on a batch"
            )
        return self.model

    def need_data(self) -> Data:
        """The data; a ValueError where there are none yet."""
        if self.data is None:
            raise ValueError(
                "there are no data yet: pass Work(data=...), or put a stage that loads some (LoadTFDS) before this one"
            )
        return self.data


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a stage hands back from `apply`: the new work, and what to say of it in the report."""

    work: Work
    changed: Sequence[str] = ()
    skipped: Sequence[Mapping[str, str]] = ()
    history: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    sensitivity: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, repr=False)
class Stage(Config):
    """One step of a chain. A subclass has fields, `validate` and `apply`.

    `validate(work)` checks, before anything is trained, that the stage can do its part on what the stages before
    it will have made, and returns the work as it will be after it: same model, further invariants. It must be
    cheap and must not change what it is given. `apply(work, folder)` does the part; `folder` takes its files.

    Where several processes train together, each calls `apply` of the stages with `trains = True`, and the chief alone
    that of all others; the files that count are the chief's.
    """

    trains: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    def validate(self, work: Work) -> Work:
        """Raises where the stage cannot do its part after what precedes it; returns the work to expect."""
        raise NotImplementedError(f"{self.name} must define validate(work) -> work")

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Does the stage's part; writes files to `folder` only."""
        raise NotImplementedError(f"{self.name} must define apply(work, folder) -> Outcome")

    def folder(self, work: Work) -> pathlib.Path:
        """Where the stage's result is kept: `<workdir>/<number>-<name>`."""
        workdir = work.with_workdir().workdir
        assert workdir is not None
        return workdir / f"{work.finished + 1:02d}-{self.name}"

    def partial_folder(self, work: Work) -> pathlib.Path:
        """Where the stage keeps what lets it continue after an interruption; removed when it is done."""
        return self.folder(work).with_suffix(".partial")

    def __call__(self, work: Work) -> Work:
        """Does the stage, checks every promise on its result, writes it, and returns the work read back."""
        work = adopt(work.with_workdir())
        expected = self.validate(work)
        folder, started = self.folder(work), time.perf_counter()
        keras.utils.set_random_seed(work.seed * 1000 + work.finished)
        before = work
        # A model of its own: the stage may train it in place, and the caller's work must stay as it is.
        work = with_fresh_model(work)
        if not work.peers.is_chief:
            return self._follow(work, folder, expected)
        with atomic_path(folder) as temporary, stage_bar(folder.name):
            temporary.mkdir()
            # Before `apply`, which may train this very model.
            metrics = {"before": _metrics_before(work)}
            outcome = self.apply(work, temporary)
            after, model = outcome.work, outcome.work.model
            changed_model = model is not None and (model is not work.model or bool(outcome.changed))
            metrics["after"] = _metrics(after) if changed_model else metrics["before"]
            entry = StageEntry(
                name=self.name,
                repr=repr(self),
                seconds=time.perf_counter() - started,
                metrics=metrics,
                changed=list(outcome.changed),
                skipped=[dict(each) for each in outcome.skipped],
                invariants=invariants.check(model, after.invariants) if model is not None else [],
                history={key: list(values) for key, values in outcome.history.items()},
                sparsity=invariants.measure_sparsity(model) if changed_model and after.invariants else {},
                notes=list(outcome.notes),
                sensitivity=dict(outcome.sensitivity),
            )
            after = after.replace(report=after.report.add(entry))
            write_stage(temporary, after, save_model=changed_model)
        remove(self.partial_folder(work))
        work.peers.wait()
        return read_stage(folder, after.replace(model=before.model))

    def _follow(self, work: Work, folder: pathlib.Path, expected: Work) -> Work:
        """Takes part in the chief's training, and reads what the chief has written."""
        if self.trains:
            with tempfile.TemporaryDirectory() as own:
                self.apply(work, pathlib.Path(own))
        work.peers.wait()
        return read_stage(folder, expected)


def _metrics_before(work: Work) -> dict[str, float]:
    """What was measured after an earlier stage, else measured now."""
    known = (entry.metrics["after"] for entry in reversed(work.report.stages) if entry.metrics.get("after"))
    return dict(next(known, None) or _metrics(work))


def _metrics(work: Work) -> dict[str, float]:
    if work.model is None or work.data is None or not work.trained:
        return {}
    return evaluation.evaluate(work.model, work.data)
