"""`KeepClusters`: clusters that were promised, in a later training: as few as they are, and still learning."""

from collections.abc import Sequence

import keras
import numpy as np

from tfopt.cluster.callback import ClusteringCallback
from tfopt.clusters import Clustered
from tfopt.invariants import Invariant


class KeepClusters(ClusteringCallback):
    """Begins with the clusters that a model has; up to a step, weights may change to the nearest one.

    Where the promise's own constraint fixes which weights share a value, training that moves them all, as
    quantization-aware training does, loses what weights at the border between two clusters could gain.

    Args:
      promise: which variables are clustered.
      model: with the clusters, as it is before training.
      last: the step after which no weight changes its cluster; None: they go on.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")], name="net")
    >>> _ = model.layers[0].kernel.assign(np.sign(model.layers[0].kernel))
    >>> model.compile("sgd", "mse")
    >>> kept = KeepClusters(Clustered({"net/head/kernel": 2}), model)
    >>> _ = model.fit(np.ones((8, 8)), np.ones((8, 4)), verbose=0, callbacks=[kept])
    >>> kept.clusters
    {'net/head/kernel': 2}
    """

    def __init__(self, promise: Clustered, model: keras.Model, last: int | None = None) -> None:
        super().__init__(max(2, *promise.targets.values()), per_channel=promise.per_channel)
        self._last_step = last
        # Those before training: a training that goes on from a checkpoint may have lost one, and has room for it.
        self._counts = {
            variable.path: _count(keras.ops.convert_to_numpy(variable), promise.per_channel)
            for variable in model.trainable_variables
            if variable.path in promise.targets
        }

    def _choose(self) -> list[tuple[keras.Variable, int]]:
        variables = self.model.trainable_variables
        return [(each, self._counts[each.path]) for each in variables if each.path in self._counts]


def moving_clusters(
    promises: Sequence[Invariant], model: keras.Model, last: int | None = None
) -> tuple[list[KeepClusters], list[Invariant]]:
    """Callbacks that keep the promised clusters of a model, and the promises that are left for constraints."""
    clusters = [KeepClusters(each, model, last) for each in promises if isinstance(each, Clustered)]
    return clusters, [each for each in promises if not isinstance(each, Clustered)]


def _count(kernel: np.ndarray, per_channel: bool) -> int:
    if not per_channel:
        return len(np.unique(kernel))
    return max(len(np.unique(channel)) for channel in kernel.reshape(-1, kernel.shape[-1]).T)
