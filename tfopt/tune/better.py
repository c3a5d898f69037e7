"""The float model trained on for a short time: candidates begin with it, and learn from it."""

import pathlib

import keras

from tfopt.chain import run
from tfopt.data import Data
from tfopt.report import units
from tfopt.stage import Work
from tfopt.train.fit import Fit
from tfopt.train.rates import Cosine
from tfopt.train.stage import Train
from tfopt.tune.reference import Reference, value_of

FOLDER = "better"
# The part of the search that may go into it, the most epochs that it gets, and its share of the learning rate: MLPerf
# Tiny's ResNet-8 rose from 87.2 % to 89.0 % on CIFAR-10 in two epochs at 3e-4.
_PART, _MOST, _RATE = 0.06, 3, 0.15


def trained_on(
    model: keras.Model,
    data: Data,
    reference: Reference,
    learning_rate: float,
    seconds: float,
    workdir: pathlib.Path,
    seed: int,
) -> tuple[keras.Model, list[str]]:
    """The model after a short training where that makes it better, else the model; and what there is to say of it.

    Args:
      model: as it came; it stays as it is.
      data: those to search with.
      reference: of the model.
      learning_rate: highest of the candidates' trainings.
      seconds: of the whole search.
      workdir: of the search.
      seed: of all randomness.
    """
    epochs = min(_MOST, int(_PART * seconds / max(reference.epoch_seconds, 1e-9)))
    if not epochs:
        return model, []
    work = Work(model, data, workdir / FOLDER, seed=seed)
    trained = run([Train(epochs, Fit(Cosine(_RATE * learning_rate)))], work, "training on").need_model()
    value = value_of(trained, data, "validation", reference.metric)[1]
    if reference.drop(value) >= 0:
        return model, []
    before, after = (units.value(reference.metric, each) for each in (reference.value, value))
    said = (
        f"the float model was not at its best: in {epochs} more epochs its {reference.metric} on the validation split "
        f"went from {before} to {after}. Candidates begin with it and learn from it; drops are against the model as it "
        "came"
    )
    return trained, [said]
