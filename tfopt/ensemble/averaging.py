"""`AveragingCallback`: the mean of a training's weights (SWA, EMA) inside anyone's `model.fit`."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.config import require
from tfopt.data import as_data
from tfopt.ensemble.running import RunningMean
from tfopt.quantize.frozen import is_quantized
from tfopt.train.statistics import recalibrate
from tfopt.variables import step_counter


class AveragingCallback(keras.callbacks.Callback):
    """Gives a model the mean of the weights that it had on its way: at the end of `fit`, it has these.

    Stochastic weight averaging (SWA) is the mean of all that were seen; an exponential moving average (EMA) that of the
    last ones. The mean is kept by constraints on the variables, inside the compiled step, and so is the same with
    `steps_per_execution`, XLA and `MirroredStrategy`. It is taken after all other constraints: zeros and clusters that
    stay where they are do so in the mean as well. A weight that is zero in the end, as after pruning, is zero in it.

    Args:
      decay: what remains of the mean at each step that counts, in (0, 1): it is that of about the last 1 / (1 - decay);
        before there are as many, that of all. None: always that of all.
      begin_step: steps of this `fit` before the first that counts, at least 0.
      frequency: steps from one that counts to the next, at least 1.
      data: what the statistics of BatchNormalization are computed from anew, since those of the training are not those
        of the mean: `Data`, arrays or a batched dataset. False: they stay as they are, to be computed by
        `tfopt.train.recalibrate` later.

    Raises:
      ValueError: for values out of range; before the first step, where no step would count, the model is
        quantization-aware, it has BatchNormalization and there are no data, or weights change their clusters.

    Sources: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, arXiv:1803.05407;
    Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    >>> model.compile(keras.optimizers.SGD(0.25), "mse", jit_compile=False)
    >>> averaging = AveragingCallback()
    >>> _ = model.fit(np.ones((3, 1)), np.ones((3, 1)), batch_size=1, verbose=0, callbacks=[averaging])
    >>> model.get_weights()[0].item(), (0.5 + 0.75 + 0.875) / 3 == 0.7083333333333334, averaging.count
    (0.7083333134651184, True, 3)
    """

    def __init__(self, decay: float | None = None, begin_step: int = 0, frequency: int = 1, data: Any = None) -> None:
        super().__init__()
        check_averaging(decay, begin_step, frequency)
        self.decay, self.begin_step, self.frequency, self.data = decay, begin_step, frequency, data
        self.count = 0
        # Of the trainable variables as they were at the end, before they got the mean.
        self.last_weights: list[np.ndarray] = []
        self._means: list[RunningMean] = []
        self._restored: Mapping[str, np.ndarray] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks what can be known before the first step."""
        self._detach()
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if steps is not None and epochs is not None:
            require(
                self.begin_step + self.frequency <= steps * epochs,
                f"no step would count: the first is {self.begin_step + self.frequency} (begin_step={self.begin_step}, "
                f"frequency={self.frequency}), and {epochs} epochs of {steps} steps are {steps * epochs}",
            )
        require(
            not is_quantized(self.model),
            f"{self.model.name!r} is quantization-aware, and its ranges would not be those of the mean of its weights: "
            "average before QuantizeAware",
        )
        norms = [each.name for each in self.model._flatten_layers() if _has_statistics(each)]
        require(
            not norms or self.data is not None,
            f"{', '.join(norms[:3])} of {self.model.name!r} have statistics, which must be computed anew for the mean "
            "of the weights: pass data=, the training data, or data=False and call tfopt.train.recalibrate afterwards",
        )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before the first step, has it compiled anew: one compiled before knows nothing of the means."""
        if not self._means:
            self.model.make_train_function(force=True)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Before the first step, attaches the means."""
        # Not earlier: the other callbacks have attached their constraints by now, and the mean comes after these.
        if not self._means:
            self._attach()

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the model the mean, and its BatchNormalization the statistics that belong to it."""
        # A training that was over when it was interrupted has no further epoch.
        if not self._means and self._restored:
            self._attach()
        if not self._means:
            return
        self.count = int(self._means[0].count.numpy())
        require(self.count > 0, f"training ended before the first step that counts, {self.begin_step + self.frequency}")
        self.last_weights = [keras.ops.convert_to_numpy(each.variable) for each in self._means]
        for each in self._means:
            each.finish()
        self._detach()
        if self.data is not None and self.data is not False and any(map(_has_statistics, self.model._flatten_layers())):
            recalibrate(self.model, as_data(self.data))

    def state(self) -> dict[str, np.ndarray]:
        """The means, for a checkpoint."""
        return {f"{i}_{key}": value for i, each in enumerate(self._means) for key, value in each.state().items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave when training starts."""
        self._restored = state

    def _attach(self) -> None:
        steps = step_counter(self.model)
        for index, variable in enumerate(self.model.trainable_variables):
            require(
                not any(getattr(part, "refresh", 0) for part in getattr(variable.constraint, "parts", ())),
                f"the weights of {variable.path} change their clusters in training, and their mean would have more "
                "values than clusters: pass refresh=0 to ClusteringCallback, or average in a training after it",
            )
            mean = RunningMean(variable, self.decay, self.begin_step, self.frequency, steps)
            if self._restored:
                mean.restore({key: self._restored[f"{index}_{key}"] for key in mean.state()})
            mean.attach()
            self._means.append(mean)
        self._restored = None

    def _detach(self) -> None:
        """Training that follows computes no mean."""
        for each in self._means:
            each.detach()
        if self._means:
            self.model.train_function = None
        self._means = []


def check_averaging(decay: Any, begin_step: Any, frequency: Any) -> None:
    """Raises a ValueError for values out of range."""
    require(
        decay is None or (isinstance(decay, int | float) and 0 < decay < 1),
        f"decay must be None or in (0, 1), such as 0.999; received {decay!r}",
    )
    for name, value, least in (("begin_step", begin_step, 0), ("frequency", frequency, 1)):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        require(is_whole and value >= least, f"{name} must be a whole number from {least}, received {value!r}")


def _has_statistics(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
