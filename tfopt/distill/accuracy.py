"""How good a teacher is, beside its student."""

from typing import TYPE_CHECKING, Any

import keras

from tfopt.data import Data
from tfopt.data.dataset import Split
from tfopt.distill.distiller import Distiller
from tfopt.distill.records import Recorded, join
from tfopt.evaluation import evaluate
from tfopt.train.task import build_state, task_of
from tfopt.workdir import load_saved

if TYPE_CHECKING:
    from tfopt.stage import Work
    from tfopt.train.fit import Fit


def teacher_notes(work: "Work", fit: "Fit", student: keras.Model) -> list[str]:
    """What the report says of the teacher: its metric on the test split, beside the student's before and after.

    Args:
      work: as the stage got it.
      fit: how it trained; without a teacher there is nothing to say.
      student: as it is now.
    """
    if fit.distill is None:
        return []
    data = work.need_data()
    distiller = fit.distill.distiller(student, data, work.snapshot(fit.distill.stage))
    teacher, after = distiller.teacher, evaluate(student, data)
    name = next((each for each in after if not each.endswith("loss")), "loss")
    if isinstance(teacher, Recorded):
        theirs = evaluate_teacher(distiller, join(data, teacher.record), "train")
        return [f"learnt from {teacher.name}, as recorded: {name} {theirs[name]:.4f} on the training split"]
    values = {"the teacher": evaluate_teacher(distiller, data, "test")[name], "the student after": after[name]}
    if work.trained:
        known = [each.metrics["after"] for each in work.report.stages if each.metrics.get("after")]
        before = known[-1] if known else evaluate(load_saved(work.snapshot()), data)
        values["the student before"] = before[name]
    said = ", ".join(f"{who} {value:.4f}" for who, value in values.items())
    return [f"learnt from {teacher.name}; {name} on the test split: {said}"]


def evaluate_teacher(distiller: Distiller, data: Data, split: Split, batches: int | None = None) -> dict[str, float]:
    """Loss and metrics of the teacher for its student's task, on the first batches of a split; None: on all."""
    task, some = task_of(distiller.student, data), data.batches(split)
    some = some if batches is None else some.take(batches)
    task.compile(distiller, jit_compile=False)
    build_state(distiller, some)
    answers = _Answers(distiller)
    task.compile(answers, jit_compile=False)
    metrics = answers.evaluate(some, verbose=0, return_dict=True)
    return {name: float(value) for name, value in metrics.items()}


class _Answers(keras.Model):
    """A teacher as a model, with outputs like its student's."""

    def __init__(self, distiller: Distiller) -> None:
        super().__init__(name=distiller.name)
        names = getattr(distiller, "output_names", None)
        if names is not None:
            self.output_names = names
        # A method, so that Keras counts nothing of the student.
        self._answer = distiller.teacher_answers

    def call(self, x: Any) -> Any:
        """The teacher's outputs."""
        return self._answer(x)
