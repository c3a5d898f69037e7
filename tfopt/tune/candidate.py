"""One candidate of `reach`: a chain from the float model to a file, in a folder of its own, measured once."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from absl import logging

from tfopt.analyze.allocate import allocate_zeros
from tfopt.analyze.result import Sensitivity
from tfopt.blocks.find import find_blocks
from tfopt.blocks.stage import PruneBlocks
from tfopt.chain import run
from tfopt.channels.stage import PruneChannels
from tfopt.data import Data
from tfopt.distill.outputs import kind_of
from tfopt.distill.teaching import Teaching
from tfopt.files import write_text
from tfopt.fuse.model import fuse_layers
from tfopt.prune.stage import Prune
from tfopt.quantize.bits import InInt8
from tfopt.quantize.stage import QuantizeAware
from tfopt.record import Record
from tfopt.stage import Stage, Work
from tfopt.tflite.stage import ExportTFLite
from tfopt.train.fit import Fit
from tfopt.train.rates import Cosine
from tfopt.train.stage import Train
from tfopt.train.task import task_of
from tfopt.tune.options import Option
from tfopt.tune.reference import FILE, FOLDER, Reference, latency_ratio, value_of
from tfopt.tune.widths import narrowed, present, ratios
from tfopt.workdir import MODEL_FILE, load_saved

# Shares of the learning rate for later trainings: pruning begins with good weights, rounding with nearly final ones.
_PRUNE_RATE, _ROUND_RATE = 0.5, 0.2
# Parts of the epochs for zeros and for rounding.
_PRUNE_PART, _ROUND_PART = 0.2, 0.2
# What is learnt from the float model: ResNet-8 without a block, 24 epochs on CIFAR-10, was right in 86.3 % with these,
# in 85.9 % without a teacher.
_TEMPERATURE, _ALPHA = 4.0, 0.7


@dataclasses.dataclass(frozen=True)
class Candidate(Record):
    """A file that was tried.

    Args:
      number: 0 is the plain int8 file, quantized after training.
      option: what was done, in words.
      stages: the same as source.
      epochs: of all its trainings.
      value: the metric on the examples that decide; None: it failed.
      test_value: on those that judge.
      drop: how much worse than the float model it is, on the examples that decide.
      test_drop: on those that judge.
      bytes: of the file.
      gzip_bytes: of the file.
      median_ms: of the file, from runs in turns with the plain one.
      seconds: that it took.
      path: of the file, in the workdir.
      reason: why it failed.
    """

    number: int
    option: str
    stages: tuple[str, ...]
    epochs: int
    value: float | None
    test_value: float | None
    drop: float | None
    test_drop: float | None
    bytes: int | None
    gzip_bytes: int | None
    median_ms: float | None
    seconds: float
    path: str
    reason: str = ""

    @property
    def worst(self) -> dict[str, Any]:
        """What it costs, and the larger of both drops: what a goal is held against."""
        assert self.drop is not None
        assert self.test_drop is not None
        return {**dict(self), "drop": max(self.drop, self.test_drop)}


@dataclasses.dataclass(frozen=True)
class Plan(Record):
    """What a candidate is to be.

    Args:
      number: of it, from 1.
      option: what it becomes.
      epochs: of all its trainings, at least `least_epochs`.
      parent: the candidate whose float weights it begins with; 0: the model as it came.
    """

    number: int
    option: Option
    epochs: int
    parent: int = 0


def least_epochs(option: Option) -> int:
    """One for each training of a candidate."""
    return 2 + bool(option.zeros) + bool(option.blocks and option.channels)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all candidates have in common.

    Args:
      model: as it came, compiled for its task or not.
      data: those to search with.
      reference: of the model.
      sparsity: the sensitivity to zeros.
      learning_rate: highest of the first training; those after it have a part of it.
      teacher: what the candidates learn from; None: from the labels alone.
      workdir: of the search.
      seed: of all randomness.
    """

    model: keras.Model
    data: Data
    reference: Reference
    sparsity: Sensitivity
    learning_rate: float
    teacher: keras.Model | None
    workdir: pathlib.Path
    seed: int

    def folder(self, number: int) -> pathlib.Path:
        """Where a candidate keeps its files."""
        return self.workdir / "candidates" / f"{number:02d}"

    def stages(self, plan: Plan, model: keras.Model) -> list[Stage]:
        """The chain of a candidate from its first model, whose channels may be fewer than the whole one's."""
        option = plan.option
        rounding = max(1, round(_ROUND_PART * plan.epochs))
        pruning = max(1, round(_PRUNE_PART * plan.epochs)) if option.zeros else 0
        narrowing = max(1, plan.epochs - rounding - pruning)
        there = {each.name for each in find_blocks(model)} if option.blocks else set()
        blocks = [name for name in option.blocks if name in there]
        fewer = ratios(model, option.channels)
        stages: list[Stage] = []
        if blocks:
            first = max(1, narrowing // 2) if fewer else narrowing
            stages.append(PruneBlocks(blocks, first, self._fit()))
            narrowing = max(1, narrowing - first)
        if fewer:
            stages.append(PruneChannels(layers=fewer, epochs=narrowing, fit=self._fit(), multiple=1))
        elif not blocks:
            stages.append(Train(narrowing, self._fit()))
        if option.zeros:
            small = narrowed(self.model, option.channels, option.blocks)
            zeros = allocate_zeros(small, present(small, self.sparsity), option.zeros)
            stages.append(Prune(epochs=pruning, layers=zeros, fit=self._fit(_PRUNE_RATE)))
        others = 8 if option.packed else InInt8(8)
        rounded = QuantizeAware(rounding, others, layers=option.bits or None, fit=self._fit(_ROUND_RATE))
        stages.append(rounded)
        return [*stages, ExportTFLite(max_drop=1.0)]

    def _fit(self, share: float = 1.0) -> Fit:
        teaching = None if self.teacher is None else Teaching(self.teacher, _TEMPERATURE, _ALPHA)
        return Fit(Cosine(self.learning_rate * share), distill=teaching)

    def first_model(self, plan: Plan) -> keras.Model:
        """What a candidate begins with."""
        if not plan.parent:
            return self.model
        # The last one in float that has all its weights.
        kinds = {each.__name__ for each in (PruneBlocks, PruneChannels, Train)}
        folders = [each for each in self.folder(plan.parent).iterdir() if each.name.partition("-")[2] in kinds]
        return load_saved(max(folders) / MODEL_FILE)


def teacher_of(model: keras.Model) -> keras.Model:
    """The model as a teacher: it runs forward only, in two thirds of the time once it is fused, where it can be."""
    try:
        return fuse_layers(model).model
    except ValueError:
        return model


def unfit_to_teach(model: keras.Model, data: Data) -> str:
    """Why a model cannot teach what becomes of it; empty: it can."""
    try:
        for loss in keras.tree.flatten(task_of(model, data).loss):
            if loss is not None:
                kind_of(loss)
    except ValueError as error:
        return str(error)
    return ""


def plain_candidate(reference: Reference) -> Candidate:
    """The file that was quantized after training."""
    return Candidate(
        number=0,
        option="plain int8, not trained",
        stages=(),
        epochs=0,
        value=reference.plain_value,
        test_value=reference.plain_test_value,
        drop=reference.drop(reference.plain_value),
        test_drop=reference.drop(reference.plain_test_value, of_test=True),
        bytes=reference.bytes,
        gzip_bytes=reference.gzip_bytes,
        median_ms=reference.median_ms,
        seconds=0.0,
        path=f"{FOLDER}/{FILE}",
    )


def try_candidate(bench: Bench, plan: Plan) -> Candidate:
    """Trains, exports and measures a candidate; goes on where an earlier attempt was killed.

    A finished one is read back.
    """
    folder, started = bench.folder(plan.number), time.perf_counter()
    path = folder / "candidate.json"
    if path.exists():
        return read_candidate(path)
    model = bench.first_model(plan)
    stages = bench.stages(plan, model)
    known: dict[str, Any] = {
        "number": plan.number,
        "option": str(plan.option),
        "stages": tuple(map(repr, stages)),
        "epochs": plan.epochs,
    }
    logging.info("candidate %d: %s, %d epochs", plan.number, plan.option, plan.epochs)
    try:
        work = run(stages, Work(model, bench.data, folder, seed=bench.seed), f"candidate {plan.number}")
        found = _measured(bench, work, known, started)
    except (ValueError, RuntimeError, FloatingPointError) as error:
        nothing: dict[str, Any] = dict.fromkeys(
            ("value", "test_value", "drop", "test_drop", "bytes", "gzip_bytes", "median_ms")
        )
        found = Candidate(**known, **nothing, seconds=time.perf_counter() - started, path="", reason=str(error))
    write_text(path, json.dumps(found.to_dict(), indent=1))
    return found


def _measured(bench: Bench, work: Work, known: Mapping[str, Any], started: float) -> Candidate:
    reference, artefact = bench.reference, work.report.artefacts["tflite"]
    file = pathlib.Path(artefact["path"])
    value = value_of(file, bench.data, "validation", reference.metric)[1]
    test_value = value_of(file, bench.data, "test", reference.metric)[1]
    return Candidate(
        **known,
        value=value,
        test_value=test_value,
        drop=reference.drop(value),
        test_drop=reference.drop(test_value, of_test=True),
        bytes=artefact["bytes"],
        gzip_bytes=artefact["gzip_bytes"],
        median_ms=reference.median_ms * latency_ratio(file, bench.workdir / FOLDER / FILE),
        seconds=time.perf_counter() - started,
        path=str(file.relative_to(bench.workdir)),
    )


def read_candidate(path: pathlib.Path) -> Candidate:
    """A finished candidate."""
    written = json.loads(path.read_text(encoding="utf-8"))
    return Candidate(**{**written, "stages": tuple(written["stages"])})


def finished(bench: Bench) -> Sequence[Candidate]:
    """All finished candidates, by number."""
    return [read_candidate(each) for each in sorted((bench.workdir / "candidates").glob("*/candidate.json"))]
