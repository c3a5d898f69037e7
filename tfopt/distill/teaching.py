"""`Teaching`: how a stage that trains learns from a teacher, too."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfopt.config import Config, require
from tfopt.data import Data
from tfopt.distill.distiller import Distiller, check_weights
from tfopt.distill.features import as_features
from tfopt.distill.records import Recorded, join, record
from tfopt.distill.teacher import KerasTeacher, Teacher
from tfopt.workers.peers import Peers

# Examples on which outputs are looked at.
_LOOK = 64


class HasTeacher(Config):
    """A config with a field `teacher`: the repr tells Keras models apart by their weights."""

    teacher: Any

    def __repr__(self) -> str:
        shown = keras.tree.map_structure(
            lambda each: _Shown(each) if isinstance(each, keras.Model) else each, self.teacher
        )
        copy = object.__new__(type(self))
        copy.__dict__.update({**self.__dict__, "teacher": shown})
        return Config.__repr__(copy)


@dataclasses.dataclass(frozen=True, repr=False)
class Teaching(HasTeacher):
    """What a stage learns from a teacher while it trains, by `Fit(distill=Teaching(...))`; see `Distiller`.

    Args:
      teacher: the path of a saved model or of a .tflite file, a built Keras model, or a list of these: an ensemble.
        None: a model of the chain, so that a float model teaches the one that is pruned or quantized.
      temperature: softens the outputs of both, above 0.
      alpha: what the teacher's outputs count beside the targets, in [0, 1].
      features: pairs of layer names (student's, teacher's), or `Hint`, `Attention`, `Relational`.
      cache: a folder, where the teacher's outputs for the training split are kept: a second run reads them. Not with
        augmented data, nor with features. None: the teacher is run at each step.
      stage: without a teacher, the name of the earlier stage whose model teaches, such as "Train"; "input": the one
        that was handed to the chain; "": the model as it enters the stage.

    Raises:
      ValueError: values out of range, or what excludes each other.

    >>> Teaching("teacher.keras", temperature=4.0)
    Teaching(teacher='teacher.keras', temperature=4.0)
    """

    teacher: Any = None
    temperature: float = 2.0
    alpha: float = 0.5
    features: Sequence[Any] = ()
    cache: str | os.PathLike[str] | None = None
    stage: str = ""

    def __post_init__(self) -> None:
        check_weights(self.temperature, self.alpha, as_features(self.features))
        require(
            self.teacher is None or not self.stage,
            f"the teacher is {self.stage!r}'s model, or the one that is given: leave one of stage and teacher out",
        )
        require(
            self.cache is None or not self.features,
            "cache keeps the teacher's outputs, and features are seen only when it runs: leave one of the two out",
        )

    def begin(self, student: keras.Model, data: Data, entered: Any, peers: Peers) -> tuple[Distiller, Data]:
        """The student with its teacher, and the data to train it on, which may bring the teacher's outputs along.

        Args:
          student: built.
          data: what to train on.
          entered: the model of the chain that teaches where none is named, or its file.
          peers: the processes that train together; the chief writes the cache.
        """
        distiller = self.distiller(student, data, entered)
        if self.cache is not None:
            if not peers.is_chief:
                peers.wait()
            known = record(distiller.teacher, data, self.cache)
            if peers.is_chief:
                peers.wait()
            distiller = self._pair(student, Recorded(known), data)
        if isinstance(distiller.teacher, Recorded):
            data = join(data, distiller.teacher.record)
        return distiller, data

    def distiller(self, student: keras.Model, data: Data, entered: Any) -> Distiller:
        """The student with its teacher, which can be asked; see `begin`."""
        if self.teacher is not None:
            return self._pair(student, self.teacher, data)
        distiller = self._pair(student, entered, data)
        distiller.teacher.name = f"the model as {self.stage} left it" if self.stage else "the model as it entered"
        return distiller

    def _pair(self, student: keras.Model, teacher: Any, data: Data) -> Distiller:
        examples = next(iter(data.batches("train", _LOOK)))[0]
        return Distiller(student, teacher, self.temperature, self.alpha, self.features, examples)


class SameTeacher(keras.callbacks.Callback):
    """Keeps in the checkpoint which teacher it was, and refuses to go on with another one."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self._teacher = teacher

    def state(self) -> dict[str, np.ndarray]:
        """The teacher's digest."""
        return {"digest": np.frombuffer(bytes.fromhex(self._teacher.digest), np.uint8)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Compares it."""
        require(
            np.array_equal(state["digest"], self.state()["digest"]),
            f"the teacher {self._teacher.name!r} is not the one that this training began with: bring that one back, or "
            "delete the stage's .partial folder to start it again",
        )


class _Shown:
    def __init__(self, model: keras.Model) -> None:
        self._text = f"<{type(model).__name__} {model.name} {KerasTeacher(model, seen=()).digest[:16]}>"

    def __repr__(self) -> str:
        return self._text
