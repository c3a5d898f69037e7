"""`ClusteringCallback`: weight clustering inside anyone's `model.fit`."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.cluster.centroids import INITIALIZATIONS, Initialization
from tfopt.cluster.shared import SharedValues
from tfopt.clusters import Clustered
from tfopt.config import require
from tfopt.invariants import add_constraints
from tfopt.kernels import select_kernels
from tfopt.variables import LayerSelection, step_counter


class ClusteringCallback(keras.callbacks.Callback):
    """Gives each kernel few different values while a model trains; the values go on learning.

    Weights are clustered when training begins. From then on the weights of a cluster move together, by the mean of what
    each step moves them: constraints on the variables, inside the compiled step. Weights that are zero, as after
    pruning, stay zero and are one of the clusters. The clusters stay in force in this model after training. `.clusters`
    then tells how many values there are, `.invariant` the promise.

    Args:
      number_of_clusters: different values in a kernel, at least 2; zero included where the kernel has zeros.
      initialization: "kmeans++": k-means, the least squared error. "linear": evenly spaced between the extremes.
        "density": as many weights for each.
      per_channel: whether each output channel has clusters of its own, which loses less and compresses less.
      layers: names of layers, or a predicate over layers; None: every layer with a kernel of more weights than
        clusters.
      refresh: steps after which each weight may change to the cluster that it has come nearest to; 0: never.

    Raises:
      ValueError: for values out of range; before the first step, where nothing can be clustered.

    Source: Han et al., Deep Compression, 2016, arXiv:1510.00149, section 3.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")], name="net")
    >>> model.compile("sgd", "mse")
    >>> callback = ClusteringCallback(number_of_clusters=4)
    >>> _ = model.fit(np.ones((8, 8)), np.ones((8, 4)), verbose=0, callbacks=[callback])
    >>> callback.clusters
    {'net/head/kernel': 4}
    """

    def __init__(
        self,
        number_of_clusters: int,
        initialization: Initialization = "kmeans++",
        per_channel: bool = False,
        layers: LayerSelection = None,
        refresh: int = 1,
    ) -> None:
        super().__init__()
        check_method(number_of_clusters, initialization, refresh)
        self.number_of_clusters, self.initialization, self.per_channel = number_of_clusters, initialization, per_channel
        self.layers, self.refresh = layers, refresh
        self.skipped: list[dict[str, str]] = []
        self._shared: list[SharedValues] = []
        self._clustered_model: keras.Model | None = None
        self._restored: Mapping[str, np.ndarray] | None = None
        self._started = False
        self._last_step: int | None = None

    @property
    def clusters(self) -> dict[str, int]:
        """How many different values each clustered variable has now, by its path."""
        values = {each.variable.path: keras.ops.convert_to_numpy(each.variable) for each in self._shared}
        return {path: len(np.unique(value)) for path, value in values.items()}

    @property
    def invariant(self) -> Clustered:
        """The promise that the clustered variables have no more different values."""
        return Clustered(self.clusters, self.per_channel)

    def set_model(self, model: keras.Model) -> None:
        """Checks what there is to cluster."""
        super().set_model(model)
        self._started = False
        if model is not self._clustered_model:
            self._choose()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before the first step, clusters the weights and attaches the constraints."""
        # Not earlier: callbacks that restore weights do it in on_train_begin, perhaps after this one's.
        if self._started:
            return
        self._started = True
        if self.model is not self._clustered_model:
            self._attach()
        if self._restored:
            for index, shared in enumerate(self._shared):
                prefix = f"{index}_"
                own = {key.removeprefix(prefix): v for key, v in self._restored.items() if key.startswith(prefix)}
                shared.restore(own)
        for shared in self._shared:
            shared.apply()
        self._restored = None

    def on_train_end(self, logs: Any = None) -> None:
        """An averaging optimizer has overwritten the weights: clusters them again."""
        for shared in self._shared:
            shared.apply()

    def state(self) -> dict[str, np.ndarray]:
        """The clusters, for a checkpoint."""
        return {f"{i}_{key}": value for i, each in enumerate(self._shared) for key, value in each.state().items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave when training starts."""
        self._restored = state

    def _choose(self) -> list[tuple[keras.Variable, int]]:
        """The variables to cluster, each with its number of clusters."""
        variables, self.skipped = clustered_variables(
            self.model, self.layers, self.number_of_clusters, self.per_channel
        )
        return [(variable, self.number_of_clusters) for variable in variables]

    def _attach(self) -> None:
        steps = step_counter(self.model)
        self._shared = []
        for variable, count in self._choose():
            shared = SharedValues(
                variable, count, self.initialization, self.per_channel, self.refresh, steps, self._last_step
            )
            add_constraints(variable, [shared])
            self._shared.append(shared)
        self._clustered_model = self.model
        # A training step traced before knows nothing of the constraints.
        self.model.make_train_function(force=True)


def check_method(number_of_clusters: Any, initialization: str, refresh: Any) -> None:
    """Raises a ValueError for a number of clusters, an initialization or a refresh that cannot be."""
    whole = isinstance(number_of_clusters, int) and not isinstance(number_of_clusters, bool)
    require(
        whole and number_of_clusters >= 2,
        f"number_of_clusters must be a whole number from 2, received {number_of_clusters!r}",
    )
    require(
        initialization in INITIALIZATIONS,
        f"initialization must be one of {', '.join(INITIALIZATIONS)}; received {initialization!r}",
    )
    require(
        isinstance(refresh, int) and refresh >= 0,
        f"refresh must be a whole number of steps, 0 for never; received {refresh!r}",
    )


def clustered_variables(
    model: keras.Model, layers: LayerSelection, number_of_clusters: int, per_channel: bool
) -> tuple[list[keras.Variable], list[dict[str, str]]]:
    """The kernels to cluster, and the layers left out, with the reason.

    Raises:
      ValueError: there are none.
    """
    kernels, skipped = select_kernels(model, layers, "clustered")
    sizes = {each.path: int(np.prod(each.shape[:-1] if per_channel else each.shape)) for each in kernels}
    small = [each.path for each in kernels if sizes[each.path] <= number_of_clusters]
    each_channel = " a channel" if per_channel else ""
    reasons = [
        {"layer": path, "reason": f"has {sizes[path]} weights{each_channel}, no more than clusters"} for path in small
    ]
    require(
        len(small) < len(kernels),
        f"number_of_clusters is {number_of_clusters}, but no kernel of {model.name!r} has more weights"
        f"{each_channel} than that (the largest has {max(sizes.values())}): take fewer clusters",
    )
    return [each for each in kernels if each.path not in small], [*skipped, *reasons]
