"""`Fit`: how a stage trains."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.config import Config, require, require_fraction
from tfopt.data import Data
from tfopt.data.check import has_integer_labels
from tfopt.distill.teaching import Teaching
from tfopt.train.layer_rates import layer_factors
from tfopt.train.rates import LowerOnPlateau, Plateau, Schedule

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True, repr=False)
class Fit(Config):
    """How a stage trains: shared by `Train`, `Prune` and every other stage with epochs.

    Args:
      learning_rate: a number above 0, a `Cosine` or another schedule of `tfopt.train`, or a `Plateau`.
      optimizer: a Keras optimizer by name.
      precision: "float32", "mixed_bfloat16" or "mixed_float16"; the model comes back in float32.
      jit_compile: compile the step with XLA; None: only where there is an accelerator. On CPUs XLA was 6 to 20
        times slower.
      steps_per_execution: training steps in one call of the compiled function, at least 1.
      early_stopping: epochs without a lower val_loss before training stops and the best weights are taken; None:
        never.
      class_weight: weight of each class by its label; "balanced": the inverse of its frequency. Weights of single
        examples are the third part of the data.
      tensorboard: write TensorBoard logs to the workdir (extra `tensorboard`).
      clip_norm: the largest norm of all gradients together, which are scaled down to it; None: they stay.
      micro_batches: parts of a batch that are computed one after the other, for less memory (gradient accumulation);
        see `tfopt.on_strategy`.
      synchronize_every: steps that replicas train by themselves before they take the mean (local SGD); replaces
        `steps_per_execution`.
      layer_rates: factors of the learning rate, above 0, by the name of a layer, or by what names begin with.
      label_smoothing: share of each label that is given to all classes alike while training, in [0, 1); also in
        val_loss.
      distill: what is learnt from a teacher as well as from the targets, such as `tfopt.distill.Teaching()`: from the
        model as it enters the stage. None: nothing.

    Raises:
      ValueError: for a value that does not exist or is out of range.
      ModuleNotFoundError: TensorBoard is asked for and not installed.
    """

    learning_rate: float | Schedule | Plateau = 1e-3
    optimizer: str = "adam"
    precision: str = "float32"
    jit_compile: bool | None = None
    steps_per_execution: int = 1
    early_stopping: int | None = None
    class_weight: Mapping[int, float] | str | None = None
    tensorboard: bool = False
    clip_norm: float | None = None
    micro_batches: int = 1
    synchronize_every: int = 1
    layer_rates: Mapping[str, float] | None = None
    label_smoothing: float = 0.0
    distill: Teaching | None = None

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(
            isinstance(rate, Schedule | Plateau) or (isinstance(rate, int | float) and rate > 0),
            f"learning_rate must be a number above 0 or a schedule such as Cosine, received {rate!r}",
        )
        require_fraction("label_smoothing", self.label_smoothing)
        for name, factor in (self.layer_rates or {}).items():
            require(
                factor > 0,
                f"layer_rates: the factor of {name!r} must be above 0, received {factor!r}; for layers that stay as "
                "they are, use Train(layers=...)",
            )
        require(
            self.precision in PRECISIONS,
            f"precision must be one of {', '.join(PRECISIONS)}, received {self.precision!r}",
        )
        for name in ("steps_per_execution", "micro_batches", "synchronize_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, received {value!r}")
        require(
            self.synchronize_every == 1 or self.steps_per_execution in (1, self.synchronize_every),
            f"synchronize_every={self.synchronize_every} is the steps_per_execution too: leave "
            f"steps_per_execution={self.steps_per_execution} out",
        )
        require(
            self.distill is None or isinstance(self.distill, Teaching),
            f"distill must be None or a tfopt.distill.Teaching, received {self.distill!r}",
        )
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"clip_norm must be None or above 0, received {self.clip_norm!r}",
        )
        require(
            self.early_stopping is None or self.early_stopping >= 1,
            f"early_stopping must be None or a number of epochs from 1, received {self.early_stopping!r}",
        )
        weights = self.class_weight
        require(
            weights is None or isinstance(weights, Mapping) or weights == "balanced",
            f'class_weight must be a dict, "balanced" or None, received {weights!r}',
        )
        if isinstance(rate, Plateau) and self.early_stopping is not None:
            require(
                self.early_stopping > rate.patience,
                f"early_stopping={self.early_stopping} ends training before Plateau(patience={rate.patience}) can "
                "lower the rate: make it longer",
            )
        names = sorted(_optimizers())
        require(
            str(self.optimizer).lower() in names,
            f"optimizer must be one of {', '.join(names)}, received {self.optimizer!r}",
        )
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                "tensorboard=True needs the package tensorboard: pip install 'tfopt[tensorboard]'"
            )

    def make_optimizer(self, steps: int) -> keras.optimizers.Optimizer:
        """A new optimizer for a training of so many steps."""
        rate = self.learning_rate
        make = _optimizers()[self.optimizer.lower()]
        return make(rate.over(steps) if isinstance(rate, Schedule | Plateau) else rate, global_clipnorm=self.clip_norm)

    def rate_callbacks(self) -> list[LowerOnPlateau]:
        """What changes the learning rate between epochs."""
        return [LowerOnPlateau(self.learning_rate)] if isinstance(self.learning_rate, Plateau) else []

    def uses_xla(self) -> bool:
        """Whether the step is compiled with XLA on this machine."""
        if self.jit_compile is not None:
            return self.jit_compile
        return bool(tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"))

    def class_weights(self, data: Data) -> dict[int, float] | None:
        """The weight of each class for these data.

        Raises:
          ValueError: the targets are not integer labels, the data have weights already, or a class has none.
        """
        if self.class_weight is None:
            return None
        require(
            has_integer_labels(data),
            f"class_weight needs integer labels; the data give {data.element_spec[1]}",
        )
        require(
            len(data.element_spec) == 2,
            "class_weight cannot be used with sample weights: multiply it into the third part of the data",
        )
        labels = np.concatenate([np.ravel(batch[1].numpy()) for batch in data.batches("train")])
        classes, counts = np.unique(labels, return_counts=True)
        if self.class_weight == "balanced":
            weights = len(labels) / (len(classes) * counts)
            return dict(zip(classes.tolist(), weights.tolist(), strict=True))
        assert isinstance(self.class_weight, Mapping)
        missing = sorted(set(classes.tolist()) - set(self.class_weight))
        require(not missing, f"class_weight has no weight for the classes {missing}")
        return {int(label): float(weight) for label, weight in self.class_weight.items()}


def _optimizers() -> dict[str, Callable[..., keras.optimizers.Optimizer]]:
    """Keras' optimizers by their names in lower case."""
    base, wrappers = keras.optimizers.Optimizer, ("optimizer", "lossscaleoptimizer", "multioptimizer")
    classes = [each for each in vars(keras.optimizers).values() if isinstance(each, type) and issubclass(each, base)]
    return {each.__name__.lower(): each for each in classes if each.__name__.lower() not in wrappers}


def check_training(model: Any, epochs: int, fit: Fit) -> None:
    """Raises where a model cannot be trained as `fit` says."""
    require(isinstance(epochs, int) and epochs >= 1, f"epochs must be a whole number from 1, received {epochs!r}")
    require(
        bool(model.trainable_variables),
        f"the model {model.name!r} has nothing to train: all of its layers are frozen (set trainable = True)",
    )
    layer_factors(model, fit.layer_rates or {})
