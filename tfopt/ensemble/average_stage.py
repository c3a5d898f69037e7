"""The stage `AverageWeights`."""

import dataclasses
import math
import pathlib
from typing import ClassVar

import keras

from tfopt.config import require, require_fraction
from tfopt.distill.accuracy import teacher_notes
from tfopt.ensemble.averaging import AveragingCallback, check_averaging
from tfopt.ensemble.costs import scores_of
from tfopt.ensemble.members import same
from tfopt.quantize.frozen import is_quantized
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train_in
from tfopt.train.stage import validate_training
from tfopt.train.statistics import recalibrate


@dataclasses.dataclass(frozen=True, repr=False)
class AverageWeights(Stage):
    """Trains the model, and gives it the mean of the weights on the way: SWA, or EMA with `decay`.

    An ensemble at the cost of one model. The statistics of BatchNormalization are computed anew for the mean. Zeros and
    clusters of earlier stages stay: each of the weights that are averaged has them.

    Args:
      epochs: passes over the training split, at least 1.
      decay: of an exponential moving average, in (0, 1); None: the mean of all, stochastic weight averaging.
      begin: share of the training after which the mean begins, in [0, 1).
      frequency: steps from one that counts to the next, at least 1; None: an epoch for SWA, each step with `decay`.
      fit: how to train. SWA gains most with a rate that stays high: a number, or a `Cosine` with a high `final`.

    Raises:
      ValueError: for values out of range, or early stopping, which takes the weights of one epoch.

    >>> AverageWeights(epochs=10, decay=0.999)
    AverageWeights(epochs=10, decay=0.999)
    """

    epochs: int = 5
    decay: float | None = None
    begin: float = 0.5
    frequency: int | None = None
    fit: Fit = Fit()
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_fraction("begin", self.begin)
        check_averaging(self.decay, 0, 1 if self.frequency is None else self.frequency)
        require(
            self.fit.early_stopping is None,
            "early stopping takes the weights of the best epoch, and this stage the mean of many: leave early_stopping "
            "out",
        )
        require(
            self.fit.synchronize_every == 1,
            "replicas that train by themselves have means of their own: leave synchronize_every out",
        )

    def validate(self, work: Work) -> Work:
        """Checks the model and the data, and that there is something to average."""
        validate_training(work, self.epochs, self.fit)
        require(
            not is_quantized(work.need_model()),
            "the model is quantization-aware, and its ranges would not be those of the mean of its weights: put "
            "AverageWeights before QuantizeAware",
        )
        steps, (begin, frequency) = self.epochs * work.need_data().steps_per_epoch, self._when(work)
        counting = (steps - begin) // frequency
        require(
            counting >= 2,
            f"{counting} of {steps} steps would count, and a mean needs two: begin is {self.begin} of the training "
            f"(step {begin}), and every {frequency} steps one counts. Train longer, begin earlier, or lower frequency",
        )
        return work.replace(trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Trains and averages."""
        begin, frequency = self._when(work)
        # The statistics come at the end, on one device.
        averaging = AveragingCallback(self.decay, begin, frequency, data=False)
        model, history = train_in(self, work, self.epochs, self.fit, callbacks=[averaging])
        last = same(model)
        for variable, value in zip(last.trainable_variables, averaging.last_weights, strict=True):
            variable.assign(value)
        norms = [each for each in model._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]
        if any(each.trainable for each in norms):
            recalibrate(model, work.need_data())
        name, (before, after) = scores_of([last, model], work.need_data())
        notes = [
            f"the mean of {averaging.count} sets of weights; {name} on the test split: the last weights {before:.4f}, "
            f"the mean {after:.4f}; at the cost of one model",
            *teacher_notes(work, self.fit, model),
        ]
        changed = [layer.name for layer in model.layers if layer.trainable_variables]
        return Outcome(work.replace(model=model, trained=True), changed=changed, history=history, notes=notes)

    def _when(self, work: Work) -> tuple[int, int]:
        """The step that the mean begins at, and the steps between two that count."""
        epoch = work.need_data().steps_per_epoch
        begin = math.floor(self.begin * self.epochs * epoch)
        if self.frequency is not None:
            return begin, self.frequency
        if self.decay is not None:
            return begin, 1
        # Ends of epochs.
        return math.floor(self.begin * self.epochs) * epoch, epoch
