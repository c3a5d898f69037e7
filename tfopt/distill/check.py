"""What is wrong with a teacher is told before anything is trained."""

import math
from typing import TYPE_CHECKING

import keras

from tfopt.config import require
from tfopt.data.check import has_integer_labels
from tfopt.distill.accuracy import evaluate_teacher
from tfopt.distill.features import as_features
from tfopt.distill.outputs import kind_of
from tfopt.train.task import task_of

if TYPE_CHECKING:
    from tfopt.stage import Work
    from tfopt.train.fit import Fit

# Examples on which a teacher must be better than chance.
_LOOK = 500


def check_teaching(work: "Work", fit: "Fit", student: keras.Model | None = None) -> None:
    """Checks that what `fit` names as a teacher can teach the work's model.

    Args:
      work: as it will be when the stage begins.
      fit: how the stage trains; without a teacher there is nothing to check.
      student: what is trained, where it is not the work's model.

    Raises:
      ValueError: it cannot; says why.
    """
    teaching = fit.distill
    if teaching is None:
        return
    model, data = work.need_model(), work.need_data()
    for loss in keras.tree.flatten(task_of(model, data).loss):
        if loss is not None:
            kind_of(loss)
    require(
        teaching.teacher is not None or work.trained,
        f"{model.name!r} would teach itself, and has not been trained yet: put Train before this stage, or name a teacher",
    )
    require(
        teaching.cache is None or not data.augment,
        "cache keeps what the teacher says of the images as they are, and the data are augmented anew in each epoch: "
        "leave cache out, so that the teacher sees what the student sees, or leave the augmentation out",
    )
    features = as_features(teaching.features)
    shares = work.strategy.num_replicas_in_sync * fit.micro_batches
    for each in features:
        require(
            shares == 1 or not each.needs_batch,
            f"{each!r} compares the examples of a batch with each other, and {shares} replicas or micro-batches have "
            "only a part each: train on one device, or leave it out",
        )
    distiller = teaching.distiller(student or model, data, model)
    require(
        distiller.teacher.in_graph or teaching.cache is not None or not fit.jit_compile,
        f"jit_compile=True cannot compile the teacher {distiller.teacher.name!r}, a .tflite file that LiteRT runs: leave it "
        "out, or give cache= a folder for its outputs",
    )
    if teaching.teacher is not None and has_integer_labels(data):
        _check_trained(distiller, data)


def _check_trained(distiller: object, data: object) -> None:
    """Raises where a teacher of classes is no better than chance."""
    size = min(data.sizes["train"], _LOOK)
    found = evaluate_teacher(distiller, data, "train", -(-size // data.batch_size))
    units = distiller.teacher.seen[0].shape[-1]
    chance = 1 / max(2, units)
    least = chance + 2 * math.sqrt(chance * (1 - chance) / size)
    accuracy = found.get("accuracy")
    require(
        accuracy is None or accuracy > least,
        f"the teacher {distiller.teacher.name!r} is right in {accuracy} of {size} training examples, which is no better "
        f"than chance ({chance:.3f} for {max(2, units)} classes): train it, load its weights, or see that its labels are "
        "numbered as the data's",
    )
