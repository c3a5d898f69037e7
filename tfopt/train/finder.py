"""`find_learning_rate`: which learning rate to begin with, from one short training."""

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfopt.config import require
from tfopt.data import Data
from tfopt.record import Record
from tfopt.train.fit import Fit, check_training
from tfopt.train.layer_rates import layer_factors, with_factors
from tfopt.train.precision import to_policy
from tfopt.train.rates import KerasSchedule, Schedule
from tfopt.train.smooth import smoothed
from tfopt.train.task import build_state, task_of
from tfopt.workdir import load_saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class RateSweep(Record):
    """The loss of a training whose learning rate rose at each step.

    Args:
      rates: the learning rate of each step, ascending.
      losses: the loss of each step's batch before it was learnt.
      smoothed: the mean around each, with weights that fall to both sides.

    >>> sweep = RateSweep((0.001, 0.01, 0.1, 1.0), (1.0, 0.9, 0.4, 0.35), (1.0, 0.9, 0.4, 0.35))
    >>> sweep.suggestion
    0.01
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls most steeply, over the logarithm of the rate.

        Raises:
          ValueError: it falls nowhere.
        """
        slopes = np.gradient(self.smoothed, np.log(self.rates))
        best = int(slopes.argmin())
        require(
            bool(slopes[best] < 0),
            f"the loss falls nowhere between the rates {self.rates[0]:g} and {self.rates[-1]:g}: take others, or more "
            "steps",
        )
        return self.rates[best]

    def plot(self) -> "Figure":
        """The losses over the rates, and the suggestion, as a Matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.semilogx(self.rates, self.losses, color="0.75", label="loss of a batch")
        axes.semilogx(self.rates, self.smoothed, label="smoothed")
        axes.axvline(self.suggestion, linestyle="--", color="0.3", label=f"suggestion {self.suggestion:.2g}")
        axes.set(xlabel="learning rate", ylabel="loss")
        axes.legend()
        return figure


def find_learning_rate(
    model: keras.Model,
    data: Data,
    fit: Fit = Fit(),
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    smoothing: float = 0.9,
) -> RateSweep:
    """Trains a copy of the model with a learning rate that rises exponentially, until the loss diverges.

    The suggestion is a rate to begin with, or the peak of a schedule; it is as noisy as the losses are. The copy trains
    on one device.

    Args:
      model: a built Keras model; it stays as it was.
      data: the training split is read, more than once where it has fewer batches than `steps`.
      fit: how to train: optimizer, precision, weights of classes and so on; its learning rate and a teacher play no
        part.
      low: the rate of the first step, above 0.
      high: the rate of the last step, above `low`.
      steps: how many, at least 10. It ends earlier where the mean loss of the last ones is 4 times its least
        value.
      smoothing: how much less each further step counts in the mean around a loss, in [0, 1).

    Raises:
      ValueError: an argument is out of range, or the model cannot be trained so.

    Source: Smith, Cyclical Learning Rates, 2017, arXiv:1506.01186, section 3.3.

    >>> from tfopt.data import from_arrays
    >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    >>> data = from_arrays((x, x.sum(axis=1)), batch_size=8)
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    >>> sweep = find_learning_rate(model, data, Fit(optimizer="sgd"), low=1e-3, high=100.0)
    >>> 1e-3 < sweep.suggestion < 1 < sweep.rates[-1] < 100
    True
    """
    require(0 < low < high, f"low must be above 0 and below high, received low={low!r} and high={high!r}")
    require(isinstance(steps, int) and steps >= 10, f"steps must be a whole number from 10, received {steps!r}")
    require(0 <= smoothing < 1, f"smoothing must be in [0, 1), received {smoothing!r}")
    check_training(model, 1, fit)
    sweep = _Sweep(low, high=high)
    fit = dataclasses.replace(fit, learning_rate=sweep)
    copy = _copy(model)
    if fit.precision != "float32":
        copy = to_policy(copy, fit.precision)
    optimizer = fit.make_optimizer(steps)
    smoothed(task_of(model, data), fit.label_smoothing).compile(
        copy,
        optimizer=with_factors(optimizer, layer_factors(model, fit.layer_rates or {})),
        jit_compile=fit.uses_xla(),
    )
    build_state(copy, data.training_batches())
    schedule, weights = sweep.over(steps), fit.class_weights(data)
    rates: list[float] = []
    losses: list[float] = []
    means: list[float] = []
    for step, batch in zip(range(steps), _endless(data), strict=False):
        logs = copy.train_on_batch(*batch, class_weight=weights, return_dict=True)
        if not math.isfinite(logs["loss"]):
            break
        rates.append(float(schedule(step)))
        losses.append(float(logs["loss"]))
        means.append(smooth(losses, smoothing)[-1])
        if means[-1] > 4 * min(means) > 0:
            break
    require(
        len(rates) > 1,
        f"the loss is not finite from the start, at the rate {low:g}: take a lower one, or look for extreme inputs",
    )
    return RateSweep(tuple(rates), tuple(losses), tuple(smooth(losses, smoothing)))


def smooth(values: Sequence[float], smoothing: float) -> list[float]:
    """The mean around each value, with weights that fall exponentially to both sides: it does not lag behind.

    >>> smooth([1.0, 1.0, 4.0], 0.5)
    [1.42..., 1.75, 2.71...]
    """
    places = np.arange(len(values))
    weights = smoothing ** np.abs(places[:, None] - places)
    return (weights @ np.array(values) / weights.sum(axis=1)).tolist()


@dataclasses.dataclass(frozen=True, repr=False)
class _Sweep(Schedule):
    high: float = 1.0

    def _after(self, rising: int, steps: int) -> KerasSchedule:
        return keras.optimizers.schedules.ExponentialDecay(self.peak, steps - 1, self.high / self.peak)


def _copy(model: keras.Model) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        copy = load_saved(path, compile=False)
    for own, new in zip(model.variables, copy.variables, strict=True):
        new.assign(own)
    return copy


def _endless(data: Data) -> Iterator[tuple[Any, ...]]:
    epoch = 0
    while True:
        yield from data.training_batches(epoch)
        epoch += 1
