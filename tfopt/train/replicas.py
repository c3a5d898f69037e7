"""A copy of a model on a strategy, for Keras' own `fit`, and what is refused before it is tried."""

import collections
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import keras
import tensorflow as tf

from tfopt.config import require
from tfopt.data import Data
from tfopt.train.fit import Fit
from tfopt.train.reduce import SynchronizedStatistics
from tfopt.train.replicated import TOO_FEW, Replicated, has_statistics, no_xla
from tfopt.workdir import load_saved


@contextlib.contextmanager
def on_strategy(
    model: keras.Model, strategy: tf.distribute.Strategy, micro_batches: int = 1, synchronize_every: int = 1
) -> Iterator[keras.Model]:
    """A copy of a model whose variables are on every replica, for `compile` and `fit` inside the block.

    When the block ends, the model has the weights that the copy has learnt; it is otherwise as it was. Each
    BatchNormalization of the copy takes the statistics of the whole batch. Batch sizes are those of all replicas
    together.

    Args:
      model: built, and of classes that Keras can save; functional, Sequential or subclassed.
      strategy: see `tfopt.train.strategy`.
      micro_batches: parts into which each replica cuts its share of a batch, at least 1. They are computed one after
        the other, in less memory, and the gradients summed (gradient accumulation) before they are sent and applied.
        The step is that of the whole batch, except that BatchNormalization has the statistics of each part.
      synchronize_every: steps that each replica trains by itself before the weights, the optimizer's too, become the
        mean of all (local SGD), at least 1; it must be the `steps_per_execution` of `compile`. 1: gradients are summed
        at each step, as one device would. Source: Stich, 2019, arXiv:1805.09767.

    Raises:
      ValueError: the model cannot be copied, or not be trained as `compile` says; see there.

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> with on_strategy(model, tf.distribute.MirroredStrategy(["CPU:0"])) as copy:
    ...     copy.compile("sgd", "mse")
    ...     history = copy.fit(np.ones((8, 4)), np.zeros((8, 1)), batch_size=4, verbose=0)
    >>> bool((model.weights[0].numpy() == copy.weights[0].numpy()).all())
    True
    """
    for name, value in (("micro_batches", micro_batches), ("synchronize_every", synchronize_every)):
        require(value >= 1, f"{name} must be at least 1, received {value!r}")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        # Outside of the scope, where it could make variables, of an optimizer that other workers do not have.
        model.save(path)
        with strategy.scope():
            copy = _copy(model, path)
    copy.micro_batches, copy.synchronize_every = micro_batches, synchronize_every
    # Outside of the scope: each process has its own.
    copy._wish, copy._wishes = tf.Variable(0.0, trainable=False), collections.deque(maxlen=2)
    # What a replica trains by itself has statistics of its own.
    if strategy.num_replicas_in_sync > 1 and synchronize_every == 1:
        _share_statistics(copy)
    with strategy.scope():
        yield copy
    for own, learnt in zip(model.variables, copy.variables, strict=True):
        own.assign(learnt.numpy())


def _copy(model: keras.Model, path: pathlib.Path) -> keras.Model:
    copy = load_saved(path, compile=False)
    require(
        len(copy.variables) == len(model.variables),
        f"{model.name!r} has {len(model.variables)} variables and {len(copy.variables)} after it was saved and read "
        "back: build all of its layers in __init__ or build()",
    )
    for variable, copied in zip(model.variables, copy.variables, strict=True):
        # Layers of subclassed models get new names; and what a file does not keep.
        copied._path, copied.trainable = variable.path, variable.trainable
        copied.assign(variable.numpy())
    kind = type(copy)
    own = {name: getattr(kind, name) for name in _STEPS if getattr(kind, name) is not getattr(keras.Model, name)}
    copy.__class__ = type(kind.__name__, (Replicated, kind), {"__module__": kind.__module__, **own})
    return copy


# What a user's class may do in its own way.
_STEPS = ("train_step", "test_step", "predict_step")


def _share_statistics(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
            # A class of the user's own keeps its ways.
            if type(layer) is keras.layers.BatchNormalization:
                layer.__class__ = SynchronizedStatistics


def check_replicas(model: keras.Model, data: Data, fit: Fit, strategy: tf.distribute.Strategy) -> None:
    """Raises a ValueError where a model cannot be trained on a strategy as on one device, before it is tried."""
    replicas, batch, last = strategy.num_replicas_in_sync, data.batch_size, data.sizes["train"] % data.batch_size
    require(
        replicas > 1 or fit.synchronize_every == 1,
        f"synchronize_every={fit.synchronize_every} is for several replicas, and the strategy has one",
    )
    require(
        batch % replicas == 0,
        f"batch_size={batch} is shared by {replicas} replicas, which it must be a multiple of: take "
        f"{-(-batch // replicas) * replicas}",
    )
    if replicas == 1 or not has_statistics(model):
        return
    require(not fit.jit_compile, no_xla(model))
    require(
        last == 0 or last >= replicas,
        f"the last batch of an epoch has {last} examples for {replicas} replicas. {TOO_FEW}",
    )
