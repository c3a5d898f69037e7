"""What is wrong with a teacher is told before anything is trained."""

import math
from typing import TYPE_CHECKING

import keras

from tfopt.config import require
from tfopt.data import Data
from tfopt.data.check import has_integer_labels
from tfopt.distill.accuracy import evaluate_teacher
from tfopt.distill.distiller import Distiller
from tfopt.distill.features import as_features
from tfopt.distill.outputs import kind_of
from tfopt.distill.records import AUGMENTED, Recorded, join
from tfopt.train.task import task_of

if TYPE_CHECKING:
    from tfopt.stage import Work
    from tfopt.train.fit import Fit

# Examples on which a teacher must be better than chance.
_LOOK = 500


def check_teaching(work: "Work", fit: "Fit") -> None:
    """Checks that what `fit` names as a teacher can teach the work's model.

    Args:
      work: as it will be when the stage begins.
      fit: how the stage trains; without a teacher there is nothing to check.

    Raises:
      ValueError: it cannot; says why.
    """
    teaching = fit.distill
    if teaching is None:
        return
    model, data = work.need_model(), work.need_data()
    for loss in keras.tree.flatten(task_of(model, data).loss):
        if loss is not None and teaching.alpha > 0:
            kind_of(loss)
    require(
        teaching.teacher is not None or work.trained,
        f"{model.name!r} would teach itself, and has not been trained yet: put Train before this stage, or name a "
        "teacher",
    )
    if teaching.stage:
        work.snapshot(teaching.stage)
    require(teaching.cache is None or not data.augment, AUGMENTED)
    parts = work.peers.strategy.num_replicas_in_sync * fit.micro_batches
    for each in as_features(teaching.features):
        each.check_parts(parts)
    distiller = teaching.distiller(model, data, model)
    teacher = distiller.teacher
    require(
        teaching.cache is None or teacher.is_live,
        f"{teacher.name!r} are outputs that are kept already: leave cache out",
    )
    if fit.jit_compile and teaching.cache is None:
        teacher.check_compiled()
    if isinstance(teacher, Recorded):
        data = join(data, teacher.record)
    if teaching.teacher is not None and has_integer_labels(data):
        _check_trained(distiller, data)


def _check_trained(distiller: Distiller, data: Data) -> None:
    """Raises where a teacher of classes is no better than chance."""
    size = min(data.sizes["train"], _LOOK)
    accuracy = evaluate_teacher(distiller, data, "train", -(-size // data.batch_size)).get("accuracy")
    classes = max(2, distiller.teacher.seen[0].shape[-1])
    # Two standard deviations above what guessing gives.
    least = 1 / classes + 2 * math.sqrt((classes - 1) / size) / classes
    require(
        accuracy is None or accuracy > least,
        f"the teacher {distiller.teacher.name!r} is right in {accuracy} of {size} training examples, no better than "
        f"chance with {classes} classes: train it, load its weights, or see that its labels are numbered as the data's",
    )
