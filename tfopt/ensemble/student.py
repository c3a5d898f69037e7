"""The stage `DistillInto`: a new, smaller model learns from the one that comes in."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import keras

from tfopt.config import require
from tfopt.distill.accuracy import teacher_notes
from tfopt.distill.teaching import Teaching
from tfopt.ensemble.costs import cost_of
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train_in
from tfopt.train.stage import Build, validate_training


@dataclasses.dataclass(frozen=True, repr=False)
class DistillInto(Stage):
    """Builds a new model, which learns from the one that comes in, an ensemble for instance, and takes its place.

    Args:
      factory: makes the student, `factory(input_shape, classes, **options)`, as for `Build`.
      options: further arguments for it.
      epochs: passes over the training split, at least 1.
      temperature: softens the outputs of both, above 0; see `tfopt.Distiller`.
      alpha: what the teacher's outputs count beside the targets, in [0, 1].
      cache: a folder, where the teacher's outputs are kept, which then runs only once; not with augmented data.
      fit: how to train.

    Raises:
      ValueError: for values out of range.

    >>> from tfopt.train import models
    >>> DistillInto(models.ds_cnn, {"filters": 16}, epochs=10)
    DistillInto(factory=tfopt.train.models.ds_cnn, options={'filters': 16}, epochs=10)
    """

    factory: Callable[..., keras.Model]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 5
    temperature: float = 2.0
    alpha: float = 0.5
    cache: str | os.PathLike[str] | None = None
    fit: Fit = Fit()
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self.fit.distill is None,
            "DistillInto's own arguments say how the student learns: leave distill out of its fit",
        )
        self._fit()

    def validate(self, work: Work) -> Work:
        """Builds the student once, and checks that the model can teach it."""
        teacher = work.need_model()
        require(
            not work.invariants,
            f"earlier stages promised {', '.join(each.kind for each in work.invariants)}, which a new model would not "
            "have: put Prune and Cluster after DistillInto",
        )
        require(
            work.trained, f"{teacher.name!r} would teach, and has not been trained yet: put Train or Ensemble first"
        )
        student, fit = self._student(work), self._fit()
        assert fit.distill is not None
        fit.distill.distiller(student, work.need_data(), teacher)
        validate_training(work.replace(model=student), self.epochs, fit)
        return work.replace(model=student)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Builds and trains the student."""
        fit = self._fit()
        model, history = train_in(self, work, self.epochs, fit, model=self._student(work), keep=())
        # What was before the stage is the teacher; the student was not there.
        notes = teacher_notes(work.replace(trained=False), fit, model)
        teacher, student = cost_of(work.need_model()), cost_of(model)
        counts = ", ".join(f"{student[key]:,} {key} in place of {teacher[key]:,}" for key in student if key in teacher)
        result = work.replace(model=model, trained=True)
        changed = [layer.name for layer in model.layers if layer.trainable_variables]
        return Outcome(result, changed=changed, history=history, notes=[*notes, f"cost: {counts}"])

    def _student(self, work: Work) -> keras.Model:
        return Build(self.factory, self.options).validate(work).need_model()

    def _fit(self) -> Fit:
        return dataclasses.replace(self.fit, distill=Teaching(None, self.temperature, self.alpha, (), self.cache))
