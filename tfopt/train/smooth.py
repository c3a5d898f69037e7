"""Label smoothing: the loss of a task, with a share of each label given to all classes alike."""

import dataclasses
from typing import Any

import keras

from tfopt.config import require
from tfopt.train.task import Task

_SPARSE = ("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy")
_KNOWN = {
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
}
_CLASSES = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
)


@keras.saving.register_keras_serializable("tfopt")
class SmoothedCrossentropy(keras.losses.Loss):
    """Keras' CategoricalCrossentropy with label smoothing, for integer labels.

    Args:
      label_smoothing: share of each label that is given to all classes alike, in [0, 1).
      from_logits: whether outputs are logits.
      options: as Keras' losses take them: name, reduction, dtype.

    Source: Szegedy et al., 2016, arXiv:1512.00567, section 7.

    >>> import numpy as np
    >>> loss = SmoothedCrossentropy(0.2)
    >>> round(float(loss([1], [[0.25, 0.75]])), 4), round(float(-0.1 * np.log(0.25) - 0.9 * np.log(0.75)), 4)
    (0.3975, 0.3975)
    """

    def __init__(self, label_smoothing: float, from_logits: bool = False, **options: Any) -> None:
        super().__init__(**{"name": "smoothed_crossentropy", **options})
        self.label_smoothing, self.from_logits = label_smoothing, from_logits

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each example."""
        ops = keras.ops
        y_pred = ops.convert_to_tensor(y_pred)
        shape = ops.shape(y_pred)
        labels = ops.one_hot(ops.reshape(ops.cast(y_true, "int32"), shape[:-1]), shape[-1], dtype=y_pred.dtype)
        return keras.losses.categorical_crossentropy(labels, y_pred, self.from_logits, self.label_smoothing)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {"label_smoothing": self.label_smoothing, "from_logits": self.from_logits}
        return {**super().get_config(), **own}


def smoothed(task: Task, label_smoothing: float) -> Task:
    """The task with smoothed labels in its loss; itself where there is nothing to smooth.

    Raises:
      ValueError: the loss is no cross-entropy, or smooths labels already.

    >>> smoothed(Task("binary_crossentropy", ["accuracy"]), 0.1).loss.get_config()["label_smoothing"]
    0.1
    """
    if label_smoothing == 0:
        return task
    return dataclasses.replace(task, loss=_smoothed_loss(task.loss, label_smoothing))


def _smoothed_loss(loss: Any, label_smoothing: float) -> keras.losses.Loss:
    if isinstance(loss, str) and loss in _SPARSE:
        return SmoothedCrossentropy(label_smoothing)
    if isinstance(loss, str) and loss in _KNOWN:
        return _KNOWN[loss](label_smoothing=label_smoothing)
    name = loss if isinstance(loss, str) else getattr(loss, "name", type(loss).__name__)
    is_sparse = type(loss) is keras.losses.SparseCategoricalCrossentropy
    require(
        is_sparse or type(loss) in _CLASSES,
        f"label_smoothing={label_smoothing} needs classes, and a cross-entropy of Keras as the one loss; the loss is "
        f"{name!r}: leave label_smoothing out",
    )
    config = loss.get_config()
    if is_sparse:
        require(
            config.pop("ignore_class", None) is None,
            f"label_smoothing={label_smoothing} does not go with ignore_class of the loss {name!r}: give the class the "
            "sample weight 0 instead",
        )
        return SmoothedCrossentropy(label_smoothing, **{**config, "name": "smoothed_crossentropy"})
    require(
        config["label_smoothing"] == 0,
        f"the loss {name!r} smooths labels already ({config['label_smoothing']}): leave label_smoothing out of Fit",
    )
    return type(loss).from_config({**config, "label_smoothing": label_smoothing})
