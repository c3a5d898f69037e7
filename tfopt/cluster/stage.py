"""The stage `Cluster`."""

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np

from tfopt.cluster.callback import ClusteringCallback, check_method, clustered_variables
from tfopt.cluster.centroids import Initialization
from tfopt.clusters import Clustered
from tfopt.config import require
from tfopt.distill.accuracy import teacher_notes
from tfopt.order import require_order
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train_in
from tfopt.train.rates import Cosine
from tfopt.train.stage import validate_training
from tfopt.variables import LayerSelection


@dataclasses.dataclass(frozen=True, repr=False)
class Cluster(Stage):
    """Gives each kernel few different values, trains these on, and promises that they stay as few.

    Args:
      number_of_clusters: different values in a kernel, at least 2; zero included where the kernel has zeros.
      epochs: passes over the training split, at least 1.
      initialization: "kmeans++", "linear" or "density"; see `ClusteringCallback`.
      per_channel: whether each output channel has clusters of its own.
      layers: names of layers, or a predicate over layers; None: every layer with a kernel of more weights than
        clusters.
      refresh: steps after which each weight may change its cluster; 0: never.
      fit: how to train.

    Raises:
      ValueError: for values out of range.

    >>> Cluster(number_of_clusters=32, epochs=1)
    Cluster(number_of_clusters=32, epochs=1)
    """

    number_of_clusters: int = 16
    epochs: int = 2
    initialization: Initialization = "kmeans++"
    per_channel: bool = False
    layers: LayerSelection = None
    refresh: int = 1
    fit: Fit = Fit(Cosine(5e-4))
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_method(self.number_of_clusters, self.initialization, self.refresh)
        require(
            self.fit.synchronize_every == 1,
            "replicas that train by themselves would choose clusters of their own: leave synchronize_every out",
        )

    def validate(self, work: Work) -> Work:
        """Checks that there is something to cluster."""
        validate_training(work, self.epochs, self.fit)
        require_order(work, "clusters")
        variables, _ = self._variables(work.need_model())
        sizes = {each.path: self.number_of_clusters * (each.shape[-1] if self.per_channel else 1) for each in variables}
        return work.replace(invariants=(*work.invariants, Clustered(sizes, self.per_channel)), trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Clusters."""
        callback = ClusteringCallback(
            self.number_of_clusters, self.initialization, self.per_channel, self.layers, self.refresh
        )
        model, history = train_in(self, work, self.epochs, self.fit, callbacks=[callback])
        variables, skipped = self._variables(model)
        promise = Clustered({each.path: len(np.unique(each)) for each in variables}, self.per_channel)
        after = work.replace(model=model, invariants=(*work.invariants, promise), trained=True)
        note = (
            f"{len(promise.targets)} kernels have {max(promise.targets.values())} different values at most: the "
            "compressed file shrinks, the file itself and the latency do not"
        )
        notes = [note, *teacher_notes(work, self.fit, model)]
        return Outcome(after, changed=list(promise.targets), skipped=skipped, history=history, notes=notes)

    def _variables(self, model: Any) -> Any:
        return clustered_variables(model, self.layers, self.number_of_clusters, self.per_channel)
