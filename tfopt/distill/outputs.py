"""What a model's outputs mean: told by its loss, and by what it gives for some examples."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.distill.losses import FLOOR, Kind, logits_of
from tfopt.train.task import is_distribution

_KINDS: dict[str, Kind] = {
    "categorical_crossentropy": "softmax",
    "sparse_categorical_crossentropy": "softmax",
    "SmoothedCrossentropy": "softmax",
    "categorical_focal_crossentropy": "softmax",
    "kl_divergence": "softmax",
    "binary_crossentropy": "sigmoid",
    "binary_focal_crossentropy": "sigmoid",
    "mean_squared_error": "values",
    "mean_absolute_error": "values",
    "mean_absolute_percentage_error": "values",
    "mean_squared_logarithmic_error": "values",
    "huber": "values",
    "log_cosh": "values",
}


def kind_of(loss: Any) -> Kind:
    """What outputs mean that are trained by a loss.

    Raises:
      ValueError: the loss is none of those that tell.

    >>> kind_of("mse"), kind_of(keras.losses.BinaryCrossentropy())
    ('values', 'sigmoid')
    """
    found = keras.losses.get(loss)
    function = getattr(found, "fn", found)
    name = getattr(function, "__name__", type(found).__name__)
    require(
        name in _KINDS,
        f"the loss {name!r} does not tell whether outputs are probabilities, logits or plain numbers, which "
        f"distillation must know: compile the model with one of {', '.join(_KINDS)}",
    )
    return _KINDS[name]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was seen of an output on some examples.

    Args:
      shape: of one example's.
      is_distribution: rows are at least 0 and sum to 1.
      is_fraction: all are in [0, 1].
      floor: half of the least that it gives above 0, where it gives zeros, as models that round do.
    """

    shape: tuple[int, ...]
    is_distribution: bool
    is_fraction: bool
    floor: float

    def is_probability(self, kind: Kind) -> bool:
        """Whether these are probabilities and not logits."""
        return self.is_distribution if kind == "softmax" else self.is_fraction and kind == "sigmoid"

    def logits(self, outputs: Any, kind: Kind, from_logits: bool | None = None) -> tf.Tensor:
        """Outputs as logits in float32, plain numbers as they are; `from_logits` where it is known better."""
        outputs = tf.cast(outputs, tf.float32)
        is_logits = not self.is_probability(kind) if from_logits is None else from_logits
        return outputs if is_logits or kind == "values" else logits_of(outputs, kind, self.floor)


def look_at(outputs: Any) -> list[Seen]:
    """What a model's outputs show, each of shape (examples, …, classes), in their flat order.

    >>> look_at(np.array([[0.0, 1.0], [0.25, 0.75]]))
    [Seen(shape=(2,), is_distribution=True, is_fraction=True, floor=0.125)]
    """
    return [_look_at(np.asarray(each, "float64")) for each in keras.tree.flatten(outputs)]


def _look_at(values: np.ndarray) -> Seen:
    require(values.ndim >= 2, f"an output has shape {values.shape}: expected (examples, …, classes or numbers)")
    is_fraction = bool((values >= 0).all() and (values <= 1.01).all())
    rounds = is_fraction and bool((values == 0).any() and (values > 0).any())
    floor = max(FLOOR, float(values[values > 0].min()) / 2) if rounds else FLOOR
    return Seen(values.shape[1:], values.shape[-1] > 1 and is_distribution(values), is_fraction, floor)


def seen_from(plain: Any) -> list[Seen]:
    """What `dataclasses.astuple` made of each, perhaps written as JSON since."""
    return [Seen(tuple(shape), *rest) for shape, *rest in plain]
