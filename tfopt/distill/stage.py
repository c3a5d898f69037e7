"""The stage `Distill`."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

from tfopt.config import require
from tfopt.distill.accuracy import teacher_notes
from tfopt.distill.teaching import HasTeacher, Teaching
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train_in
from tfopt.train.stage import validate_training


@dataclasses.dataclass(frozen=True, repr=False)
class Distill(HasTeacher, Stage):
    """Trains the model on what a teacher gives for the same inputs, and on the targets; see `Distiller`.

    Args:
      teacher: the path of a saved model or of a .tflite file, a built Keras model, or a list of these: an ensemble.
        None: the model as it enters the stage.
      epochs: passes over the training split, at least 1.
      temperature: softens the outputs of both, above 0.
      alpha: what the teacher's outputs count beside the targets, in [0, 1].
      features: pairs of layer names (student's, teacher's), or `Hint`, `Attention`, `Relational` of `tfopt.distill`.
      cache: a folder, where the teacher's outputs are kept; see `tfopt.distill.Teaching`.
      fit: how to train.

    Raises:
      ValueError: for values out of range.

    >>> Distill("teacher.keras", epochs=10, alpha=0.9)
    Distill(teacher='teacher.keras', epochs=10, alpha=0.9)
    """

    teacher: Any
    epochs: int = 5
    temperature: float = 2.0
    alpha: float = 0.5
    features: Sequence[Any] = ()
    cache: str | os.PathLike[str] | None = None
    fit: Fit = Fit()
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self.fit.distill is None,
            "Distill's own arguments say what it learns from the teacher: leave distill out of its fit",
        )
        self._fit()

    def validate(self, work: Work) -> Work:
        """Checks that the teacher can teach the model."""
        validate_training(work, self.epochs, self._fit())
        return work.replace(trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Trains."""
        fit = self._fit()
        model, history = train_in(self, work, self.epochs, fit)
        changed = [layer.name for layer in model.layers if layer.trainable_variables]
        notes = teacher_notes(work, fit, model)
        return Outcome(work.replace(model=model, trained=True), changed=changed, history=history, notes=notes)

    def _fit(self) -> Fit:
        teaching = Teaching(self.teacher, self.temperature, self.alpha, self.features, self.cache)
        return dataclasses.replace(self.fit, distill=teaching)
