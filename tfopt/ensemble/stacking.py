"""Stacking: what each member is worth, learnt from what it says of examples that it was not trained on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfopt.config import Config, require
from tfopt.data import Data
from tfopt.ensemble.combine import mixture_weights, regression_weights
from tfopt.ensemble.members import ending, kind
from tfopt.ensemble.rows import check_folds, folds_of, take_rows, with_rows


@dataclasses.dataclass(frozen=True, repr=False)
class Stacking(Config):
    """A mean of the members by weights that are learnt from their out-of-fold predictions.

    Each member is trained once for every fold, on all others, before it is trained on everything: `folds + 1` times the
    cost of the other ways.

    Args:
      folds: how many parts the training split is cut into, at least 2.

    Raises:
      ValueError: fewer than 2.

    Source: Wolpert, Stacked Generalization, 1992; Breiman, Stacked Regressions, 1996.
    """

    folds: int = 5

    def __post_init__(self) -> None:
        check_folds(self.folds)


def out_of_fold(train: Callable[[Data, int], keras.Model], data: Data, folds: int = 5, seed: int = 0) -> np.ndarray:
    """What a kind of model says of each training example, when it was trained without that example and its copies.

    Args:
      train: trains a new model on data and returns it; its second argument is the number of the fold left out, from 0.
      data: the training split is cut into folds; what is predicted is not augmented.
      folds: how many, at least 2.
      seed: of the cut.

    Returns:
      float32 of shape (training examples, …, classes), in the order of the training split.

    Raises:
      ValueError: fewer than two folds, or more than there are different examples.

    >>> from tfopt.data import from_arrays
    >>> x, y = np.eye(40, dtype="float32"), np.arange(40) % 2
    >>> def learn_by_heart(part, fold):
    ...     seen, labels = (np.array(each) for each in zip(*part.examples("train").as_numpy_iterator()))
    ...     model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(2, "softmax", use_bias=False)])
    ...     model.set_weights([9 * seen.T @ np.eye(2)[labels]])
    ...     return model
    >>> data = from_arrays((x, y), (x, y), (x, y))
    >>> learn_by_heart(data, 0)(x).numpy()[0].round(2).tolist()
    [1.0, 0.0]
    >>> out_of_fold(learn_by_heart, data, folds=4)[0].tolist()
    [0.5, 0.5]
    """
    fold_of = folds_of(data, folds, seed)
    found: np.ndarray | None = None
    for fold in range(folds):
        inside = fold_of == fold
        model = train(with_rows(data, ~inside), fold)
        held_out = dataclasses.replace(data, splits={**data.splits, "test": take_rows(data, inside)})
        rows = [keras.ops.convert_to_numpy(model(batch[0], training=False)) for batch in held_out.batches("test")]
        predicted = np.concatenate(rows)
        if found is None:
            found = np.full((len(fold_of), *predicted.shape[1:]), np.nan, predicted.dtype)
        found[inside] = predicted
    assert found is not None
    return found


def stacking_weights(predictions: np.ndarray, targets: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """The weights of the mean under which members together are best, by predictions for examples not trained on.

    Args:
      predictions: shape (members, examples, classes): probabilities; or (members, examples, 1), of the second of two
        classes. For float targets, plain numbers.
      targets: whole numbers, shape (examples,) or (examples, 1), or float, of the predictions' shape but for members.
      counts: what each example counts, at least 0; None: all the same.

    Returns:
      float64, shape (members,): at least 0, of the sum 1.

    Raises:
      ValueError: shapes that do not fit each other.

    >>> predictions = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]])
    >>> stacking_weights(predictions, np.array([0, 1])).round(2).tolist()
    [1.0, 0.0]
    """
    predictions, targets = np.asarray(predictions, "float64"), np.asarray(targets)
    require(
        predictions.ndim >= 3 and len(predictions) >= 2,
        f"predictions must have the shape (members, examples, …), of two members or more, received {predictions.shape}",
    )
    members, examples, *rest = predictions.shape
    require(len(targets) == examples, f"there are predictions for {examples} examples and {len(targets)} targets")
    if np.issubdtype(targets.dtype, np.integer):
        labels = targets.reshape(examples, *rest[:-1]).astype(int)
        if rest[-1] == 1:
            likely = np.where(labels == 1, predictions[..., 0], 1.0 - predictions[..., 0])
        else:
            likely = np.take_along_axis(predictions, labels[None, ..., None].repeat(members, 0), -1)[..., 0]
        return mixture_weights(likely.reshape(members, -1), _each(counts, likely[0].size // examples))
    size = predictions[0].size
    require(
        targets.size == size,
        f"float targets must be as many as the predictions of a member, received shapes {targets.shape} and "
        f"{predictions.shape[1:]}",
    )
    return regression_weights(predictions.reshape(members, -1), targets.reshape(-1), _each(counts, size // examples))


def probabilities(model: keras.Model, outputs: np.ndarray) -> np.ndarray:
    """A model's outputs as probabilities, if it gives logits."""
    if ending(model) != "linear" or kind(model) == "values":
        return outputs
    function = keras.activations.softmax if kind(model) == "softmax" else keras.activations.sigmoid
    return keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(outputs)))


def targets_of(data: Data) -> tuple[np.ndarray, np.ndarray | None]:
    """The targets of the training split in its order, and the weights of the examples, if there are any."""
    batches = [batch[1:] for batch in data.batches("train")]
    targets, *weights = (np.concatenate([each.numpy() for each in part]) for part in zip(*batches, strict=True))
    return targets, weights[0] if weights else None


def _each(counts: Any, times: int) -> np.ndarray | None:
    """Weights of examples as those of their parts."""
    return None if counts is None else np.repeat(np.asarray(counts, "float64").reshape(-1), times)
