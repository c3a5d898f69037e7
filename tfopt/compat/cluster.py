"""`cluster_weights` and `strip_clustering`: TFMOT's weight clustering of Keras 3 layers and models."""

import enum
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfopt.cluster.callback import check_method
from tfopt.compat.rebuild import copy_layer, layers_of, rebuild, require_graph
from tfopt.compat.together import Together, cluster
from tfopt.compat.wrapper import LayerWrapper
from tfopt.config import require
from tfopt.invariants import add_constraints
from tfopt.kernels import find_kernels
from tfopt.quantize.activations import is_keras


class CentroidInitialization(enum.StrEnum):
    """Where clusters begin: see `tfopt.ClusteringCallback`."""

    LINEAR = "CentroidInitialization.LINEAR"
    RANDOM = "CentroidInitialization.RANDOM"
    DENSITY_BASED = "CentroidInitialization.DENSITY_BASED"
    KMEANS_PLUS_PLUS = "CentroidInitialization.KMEANS_PLUS_PLUS"


_INITIALIZATIONS = {
    CentroidInitialization.LINEAR: "linear",
    CentroidInitialization.RANDOM: "random",
    CentroidInitialization.DENSITY_BASED: "density",
    CentroidInitialization.KMEANS_PLUS_PLUS: "kmeans++",
}


class ClusterableLayer:
    """A base class for layers of your own that says which of their weights are clustered.

    >>> class Head(keras.layers.Dense, ClusterableLayer):
    ...     def get_clusterable_weights(self):
    ...         return [("kernel", self.kernel)]
    """

    def get_clusterable_weights(self) -> list[tuple[str, keras.Variable]]:
        """The variables to cluster, with their names."""
        raise NotImplementedError(f"{type(self).__name__} must say which of its weights are clustered")


@keras.saving.register_keras_serializable("tfopt")
class ClusterWeights(LayerWrapper):
    """A layer whose kernels have few different values, which go on learning; made by `cluster_weights`.

    Weights are clustered when the layer is built. From then on constraints on the variables keep them so in any kind of
    training, as `Together` says. To which cluster each weight belongs, and where it would be without, is saved with the
    model.
    """

    prefix = "cluster"

    def __init__(
        self,
        layer: keras.Layer,
        number_of_clusters: int,
        cluster_centroids_init: str = CentroidInitialization.KMEANS_PLUS_PLUS,
        preserve_sparsity: bool = False,
        cluster_per_channel: bool = False,
        **kwargs: Any,
    ) -> None:
        kind = _kind(cluster_centroids_init)
        check_method(number_of_clusters, "linear", 0)
        super().__init__(layer, **kwargs)
        self.number_of_clusters, self.cluster_centroids_init = number_of_clusters, kind
        self.preserve_sparsity, self.cluster_per_channel = preserve_sparsity, cluster_per_channel
        require_clusterable(self.layer)

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, and clusters its weights."""
        require(
            not tf.inside_function(),
            f"{self.layer.name!r} has no weights yet that could be clustered: begin the model with keras.Input(shape), "
            "or call it on a batch, or model.build(input_shape), before it is trained",
        )
        super().build(input_shape)
        require(
            self.layer.built,
            f"{self.layer.name!r} ({type(self.layer).__name__}) has no weights before it is called: build its model "
            "first, and cluster that",
        )
        per_channel = self.cluster_per_channel and isinstance(self.layer, keras.layers.Conv2D)
        for index, variable in enumerate(self.clusterable_variables()):
            values = keras.ops.convert_to_numpy(variable)
            size = values.size // values.shape[-1] if per_channel else values.size
            if size <= self.number_of_clusters:
                logging.warning(
                    "%s has %d weights%s, no more than clusters: it stays as it is",
                    variable.path,
                    size,
                    " a channel" if per_channel else "",
                )
                continue
            initialization = _INITIALIZATIONS[self.cluster_centroids_init]
            centroids, members = cluster(
                values, self.number_of_clusters, initialization, per_channel, self.preserve_sparsity
            )
            together = Together(
                *(
                    self._add_state(f"{name}_{index}", value)
                    for name, value in (
                        ("pulling_indices", members),
                        ("original_weights", values.astype("float32")),
                        ("cluster_centroids", centroids),
                    )
                )
            )
            variable.assign(together.shared())
            add_constraints(variable, [together])

    def _add_state(self, name: str, value: np.ndarray) -> keras.Variable:
        # Each replica has its own: constraints run for each of them, where a mirrored variable could not be assigned.
        state = keras.Variable(
            value,
            dtype=value.dtype.name,
            trainable=False,
            name=name,
            aggregation="only_first_replica",
            synchronization="on_read",
        )
        setattr(self, name, state)
        return state

    def clusterable_variables(self) -> list[keras.Variable]:
        """The variables that are clustered: what the layer names, else the kernels that are trainable."""
        if hasattr(self.layer, "get_clusterable_weights"):
            return [variable for _, variable in self.layer.get_clusterable_weights()]
        return find_kernels(self.layer, purpose="clustered")[0]

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        names = ("number_of_clusters", "preserve_sparsity", "cluster_per_channel")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **own, "cluster_centroids_init": str(self.cluster_centroids_init)}


def cluster_weights(
    to_cluster: Any,
    number_of_clusters: int,
    cluster_centroids_init: str = CentroidInitialization.KMEANS_PLUS_PLUS,
    preserve_sparsity: bool = False,
    cluster_per_channel: bool = False,
    **kwargs: Any,
) -> Any:
    """A model, layer or list of layers whose kernels have few different values, which go on learning.

    Start from trained weights, compile what it returns, train it with a low learning rate, and call `strip_clustering`.
    What you pass stays as it is: layers that have weights are copied.

    Args:
      to_cluster: a functional or Sequential model, a layer, or a list of layers.
      number_of_clusters: different values in a kernel, at least 2.
      cluster_centroids_init: where clusters begin, a `CentroidInitialization`.
      preserve_sparsity: whether weights that are zero, as after pruning, stay zero; they are one of the clusters then.
      cluster_per_channel: whether each output channel of Conv2D layers has clusters of its own.
      **kwargs: for the wrapper around a single layer, such as input_shape.

    Returns:
      The same kind of object; a model is not compiled. In it, layers with kernels are `ClusterWeights` wrappers.

    Raises:
      TypeError: keyword arguments for a model.
      ValueError: nothing can be clustered; a layer of your own does not say what; arguments out of range.

    Source: Han et al., Deep Compression, 2016, arXiv:1510.00149, section 3.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
    >>> clustered = strip_clustering(cluster_weights(model, number_of_clusters=3))
    >>> len(np.unique(clustered.layers[0].kernel))
    3
    """
    params: dict[str, Any] = {
        "number_of_clusters": number_of_clusters,
        "cluster_centroids_init": cluster_centroids_init,
        "preserve_sparsity": preserve_sparsity,
        "cluster_per_channel": cluster_per_channel,
    }

    def wrap(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, ClusterWeights | keras.layers.InputLayer):
            return layer
        require_clusterable(layer)
        has = hasattr(layer, "get_clusterable_weights") or not layer.built or find_kernels(layer)[0]
        return ClusterWeights(layer, **params) if has else copy_layer(layer)

    if isinstance(to_cluster, keras.Model):
        if kwargs:
            raise TypeError(
                f"cluster_weights takes no {', '.join(kwargs)}: keyword arguments beyond its own are for the wrapper "
                "around a single layer, and a model was passed"
            )
        clustered = rebuild(to_cluster, wrap)
        require(
            bool(layers_of(clustered, ClusterWeights)),
            f"the model {to_cluster.name!r} has no layer that can be clustered: none has a kernel",
        )
        return clustered
    if isinstance(to_cluster, list):
        return [wrap(layer) for layer in to_cluster]
    require(
        isinstance(to_cluster, keras.Layer),
        f"expected a Keras 3 model, a layer or a list of layers, received {type(to_cluster).__module__}."
        f"{type(to_cluster).__name__}",
    )
    return to_cluster if isinstance(to_cluster, ClusterWeights) else ClusterWeights(to_cluster, **params, **kwargs)


def strip_clustering(model: keras.Model) -> keras.Model:
    """The plain model, with the clustered weights; not compiled.

    Args:
      model: from `cluster_weights`, or with layers from it; it is left as it is.

    Raises:
      ValueError: it is no functional or Sequential model, or has no clustered layer.
    """
    require_graph(model)
    require(
        bool(layers_of(model, ClusterWeights)),
        f"the model {model.name!r} has no layer from cluster_weights to strip",
    )
    return rebuild(model, lambda layer: copy_layer(layer.layer if isinstance(layer, ClusterWeights) else layer))


def cluster_scope() -> Any:
    """Inside it, Keras loads models with clustered layers also from HDF5 files."""
    return keras.utils.CustomObjectScope({"ClusterWeights": ClusterWeights})


def require_clusterable(layer: keras.Layer) -> None:
    """Raises a ValueError for a layer of one's own with weights that does not say which of them are clustered."""
    says = hasattr(layer, "get_clusterable_weights")
    require(
        says or is_keras(layer) or (layer.built and not layer.weights),
        f"the layer {layer.name!r} is of a class of your own, {type(layer).__name__}, which does not say what is "
        "clustered of it: derive it from tfopt.compat.clustering.keras.ClusterableLayer and define "
        "get_clusterable_weights(self), which returns (name, variable) for each of its variables to cluster",
    )
    require(
        not hasattr(layer, "get_clusterable_algorithm"),
        f"{layer.name!r} brings a clustering algorithm of its own (get_clusterable_algorithm), which tfopt does not "
        "call: it clusters the values of a variable whatever its shape. Leave that method out",
    )


def _kind(wanted: str) -> CentroidInitialization:
    try:
        return CentroidInitialization(wanted)
    except ValueError:
        names = ", ".join(f"CentroidInitialization.{each.name}" for each in CentroidInitialization)
        raise ValueError(f"cluster_centroids_init must be one of {names}; received {wanted!r}") from None
