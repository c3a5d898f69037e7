"""How much each channel matters, by what is known of its filters."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.channels.propagate import Flow, Producer
from tfopt.config import require

CRITERIA = ("l1", "l2", "bn_gamma", "taylor")
_BATCH = 32


def scores(model: keras.Model, flow: Flow, criterion: str, data: Any = None) -> dict[int, np.ndarray]:
    """The scores of the channels, as arrays of (ids, score): by the id of a layer, relative to its mean.

    Args:
      model: the model of the flow.
      flow: its channels.
      criterion: "l1", "l2": norms of the filters (Li et al., arXiv:1608.08710). "bn_gamma": |gamma| of the
        BatchNormalization layers that scale a channel. "taylor": |Σ w ∂L/∂w| of each filter, the mean over the batches
        (Molchanov et al., arXiv:1906.10771); BatchNormalization predicts meanwhile.
      data: for "taylor": (x, y) as arrays, or a batched dataset of (x, y).

    Returns:
      By the id of the layer or variable that is judged: an array of shape (2, n) with ids and scores.

    Raises:
      ValueError: an unknown criterion, or "taylor" without data or loss.

    >>> from tfopt.channels.propagate import follow_channels
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    >>> model.layers[0].set_weights([np.array([[1.0, -3.0], [1.0, 3.0]]), np.zeros(2)])
    >>> next(iter(scores(model, follow_channels(model), "l1").values())).tolist()
    [[2.0, 3.0], [0.5, 1.5]]
    """
    require(criterion in CRITERIA, f"criterion must be one of {', '.join(CRITERIA)}, received {criterion!r}")
    producers = list(flow.producers.values())
    if criterion == "bn_gamma":
        given = {id(gamma): (ids, np.abs(_array(gamma))) for gamma, ids in flow.gains}
    elif criterion == "taylor":
        products = _taylor(model, producers, data)
        given = {id(each.layer): (each.ids, products[id(each.layer)]) for each in producers}
    else:
        order = {"l1": 1, "l2": 2}[criterion]
        given = {
            id(each.layer): (each.ids, np.linalg.norm(_filters(each, _array(each.kernel)), order, axis=0))
            for each in producers
        }
    return {key: np.stack([ids, values / (np.mean(values) or 1.0)]) for key, (ids, values) in given.items()}


def by_class(found: Mapping[int, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """By label, the mean of the scores of all filters in the class; NaN where there is none.

    >>> by_class({1: np.array([[0, 1], [1.0, 2.0]]), 2: np.array([[2], [4.0]])}, np.array([0, 1, 1, 3])).tolist()
    [1.0, 3.0, nan, nan]
    """
    ids, values = np.concatenate(list(found.values()), axis=1) if found else np.zeros((2, 0))
    at = labels[ids.astype(np.int64)]
    total = np.bincount(at, values, minlength=len(labels))
    count = np.bincount(at, minlength=len(labels))
    return np.divide(total, count, out=np.full(len(labels), np.nan), where=count > 0)


def _array(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


def _filters(producer: Producer, values: np.ndarray) -> np.ndarray:
    """Weights as (weights of a filter, filters)."""
    return np.moveaxis(values, producer.axis, -1).reshape(-1, values.shape[producer.axis])


def _taylor(model: keras.Model, producers: list[Producer], data: Any) -> dict[int, np.ndarray]:
    require(data is not None, 'criterion="taylor" needs data=(x, y), or a batched dataset of (x, y)')
    kernels = [each.kernel for each in producers]
    values = [kernel.value for kernel in kernels]

    @tf.function(autograph=False, reduce_retracing=True)
    def gradients(x: Any, y: Any) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = _loss(model, x, y, model(x, training=False))
        return tape.gradient(loss, values, unconnected_gradients="zero")

    totals, batches = [np.zeros(each.kernel.shape[each.axis]) for each in producers], 0
    weights = [_array(kernel) for kernel in kernels]
    for x, y in _batches(data):
        batches += 1
        for each, weight, gradient, total in zip(producers, weights, gradients(x, y), totals, strict=True):
            total += np.abs(np.sum(_filters(each, weight * np.asarray(gradient)), axis=0))
    require(batches > 0, "data has no batch")
    for producer, total in zip(producers, totals, strict=True):
        require(
            bool(np.all(np.isfinite(total))), f"the gradients of {producer.name!r} are not finite on the given data"
        )
    return {id(each.layer): total / batches for each, total in zip(producers, totals, strict=True)}


def _batches(data: Any) -> Iterator[tuple[Any, Any]]:
    """Batches of (x, y); sample weights are left out."""
    batches: Iterable[Any] = data
    if isinstance(data, tuple):
        require(len(data) == 2, f"data must be (x, y) or a batched dataset of (x, y), received {len(data)} parts")
        batches = tf.data.Dataset.from_tensor_slices(data).batch(_BATCH)
    for batch in batches:
        labelled = isinstance(batch, tuple | list) and len(batch) >= 2
        require(labelled, 'criterion="taylor" needs labels: data must give batches of (x, y)')
        yield batch[0], batch[1]


def _loss(model: keras.Model, x: Any, y: Any, outputs: Any) -> tf.Tensor:
    """The compiled loss; else cross-entropy, where outputs and labels are those of a classifier."""
    if model.compiled:
        return model.compute_loss(x=x, y=y, y_pred=outputs, training=False)
    is_classifier = tf.is_tensor(outputs) and len(outputs.shape) == 2 and outputs.shape[-1] > 1
    has_classes = tf.is_tensor(y) and y.dtype.is_integer and tuple(y.shape[1:]) in ((), (1,))
    require(
        is_classifier and has_classes,
        'criterion="taylor" needs a loss: compile the model with its own. Only for integer labels and one output of '
        "(batch, classes) it is known without",
    )
    last = model.outputs[0]._keras_history.operation
    is_softmax = (
        isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax
    )
    return keras.losses.SparseCategoricalCrossentropy(from_logits=not is_softmax)(y, outputs)
