"""The stages `Build`, `LoadModel` and `Train`."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras

from tfopt.config import require
from tfopt.data.check import check_data
from tfopt.distill.accuracy import teacher_notes
from tfopt.distill.check import check_teaching
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit, check_training
from tfopt.train.loop import train_in
from tfopt.train.precision import to_policy
from tfopt.train.replicas import check_replicas
from tfopt.train.smooth import smoothed
from tfopt.train.task import task_of
from tfopt.variables import LayerSelection, all_layers, select_layers


@dataclasses.dataclass(frozen=True, repr=False)
class Build(Stage):
    """Makes a new, untrained model for the data: `factory(input_shape, classes, **options)`.

    Args:
      factory: a function such as `tfopt.models.ds_cnn`.
      options: further arguments for it.

    >>> from tfopt.train import models
    >>> Build(models.ds_cnn, {"filters": 16})
    Build(factory=tfopt.train.models.ds_cnn, options={'filters': 16})
    """

    factory: Callable[..., keras.Model]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def validate(self, work: Work) -> Work:
        """Builds the model once, to see that it can be built."""
        return work.replace(model=self._build(work), trained=False)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Builds the model."""
        model = self._build(work)
        note = f"{model.name}: {model.count_params():,} parameters, not trained yet"
        return Outcome(work.replace(model=model, trained=False), notes=[note])

    def _build(self, work: Work) -> keras.Model:
        data = work.need_data()
        require(
            isinstance(data.input_shape, tuple) and bool(data.class_names),
            f"Build makes classifiers of one input; the data {data.name!r} have input_shape={data.input_shape} and "
            f"{len(data.class_names)} class names: pass a model of your own in Work(model=...), or class_names in Data",
        )
        model = self.factory(data.input_shape, len(data.class_names), **self.options)
        if not isinstance(model, keras.Model):
            raise TypeError(f"the factory must return a keras.Model, it returned {type(model).__name__}")
        return model


@dataclasses.dataclass(frozen=True, repr=False)
class LoadModel(Stage):
    """Starts from a trained model in a file: whatever `tfopt.load_model` reads.

    Args:
      path: a .keras or .h5 file, or a SavedModel folder; Keras 2 or 3.
    """

    path: str | os.PathLike[str]

    def validate(self, work: Work) -> Work:
        """Loads the model once, to see that it can be loaded."""
        return work.replace(model=self._load(), trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Loads the model."""
        model = self._load()
        return Outcome(work.replace(model=model, trained=True), notes=[f"{model.name} from {self.path}"])

    def _load(self) -> keras.Model:
        from tfopt.load import load_model

        return load_model(self.path)


@dataclasses.dataclass(frozen=True, repr=False)
class Train(Stage):
    """Trains the model; goes on from its last checkpoint after an interruption.

    The loss is the model's own where it is compiled, else that of the data's kind of task.

    Args:
      epochs: passes over the training split, at least 1.
      fit: optimizer, learning rate, precision, XLA, early stopping, class weights.
      layers: names of the layers that learn, or a predicate over layers; all others stay as they are, their
        normalization too, in this stage. None: all.

    >>> Train(epochs=3, fit=Fit(learning_rate=0.01))
    Train(epochs=3, fit=Fit(learning_rate=0.01))
    """

    epochs: int = 5
    fit: Fit = Fit()
    layers: LayerSelection = None
    trains: ClassVar[bool] = True

    def validate(self, work: Work) -> Work:
        """Checks the model and the data, and finds the layers."""
        validate_training(work, self.epochs, self.fit)
        self._chosen(work.need_model())
        return work.replace(trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Trains."""
        model = work.need_model()
        was = [layer.trainable for layer in all_layers(model)]
        self._freeze(model)
        model, history = train_in(self, work, self.epochs, self.fit)
        changed = [layer.name for layer in model.layers if layer.trainable_variables]
        # In another precision it is a copy, frozen as the model was.
        if self.layers is not None:
            _set_trainable(all_layers(model), was)
        notes = teacher_notes(work, self.fit, model)
        return Outcome(work.replace(model=model, trained=True), changed=changed, history=history, notes=notes)

    def _chosen(self, model: keras.Model) -> list[keras.layers.Layer]:
        chosen = select_layers(model, self.layers)
        require(
            any(layer.trainable_variables for layer in chosen) or self.layers is None,
            f"of the layers of {model.name!r} that Train selects, none has weights that can learn",
        )
        return chosen

    def _freeze(self, model: keras.Model) -> None:
        """Leaves only the chosen layers as trainable as they are."""
        if self.layers is None:
            return
        chosen, layers = self._chosen(model), all_layers(model)
        holds = [any(inner in chosen for inner in layer._flatten_layers()) for layer in layers]
        _set_trainable(layers, [layer.trainable and kept for layer, kept in zip(layers, holds, strict=True)])
        for layer in layers:
            if layer not in chosen:
                # Its own, where a layer inside it learns.
                for variable in layer._trainable_variables:
                    variable.trainable = False


def _set_trainable(layers: Sequence[keras.layers.Layer], values: Sequence[bool]) -> None:
    # A layer tells all inside it; these come after it, and are told last.
    for layer, value in zip(layers, values, strict=True):
        layer.trainable = value


def validate_training(work: Work, epochs: int, fit: Fit) -> None:
    """Checks that `fit` can train the work's model on its data; used by every stage that trains."""
    model, data = work.need_model(), work.need_data()
    check_training(model, epochs, fit)
    if fit.precision != "float32":
        # Not every model can be rebuilt in another precision.
        to_policy(model, fit.precision)
    check_data(data, model)
    smoothed(task_of(model, data), fit.label_smoothing)
    fit.class_weights(data)
    check_replicas(model, data, fit, work.strategy)
    check_teaching(work, fit)
