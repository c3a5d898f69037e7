"""`SnapshotCallback`: keeps the weights of a training's turning points, inside anyone's `model.fit`."""

from collections.abc import Mapping
from typing import Any

import keras

from tfopt.config import require
from tfopt.ensemble.members import same
from tfopt.ensemble.one_model import compile_like


class SnapshotCallback(keras.callbacks.Callback):
    """Keeps the weights after every so many epochs: the members of a snapshot ensemble.

    Use it with a learning rate that falls to nearly 0 within as many epochs and then begins anew, such as
    `tfopt.train.CosineRestarts` or Keras' `CosineDecayRestarts`. `.models` are the members.

    Args:
      epochs: of a cycle, at least 1.
      count: how many of the last ones are kept, at least 2; None: all.

    Raises:
      ValueError: for values out of range; before the first step, where fewer than two cycles would end.

    Source: Huang et al., Snapshot Ensembles: Train 1, Get M for Free, 2017, arXiv:1704.00109.

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    >>> model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    >>> snapshots = SnapshotCallback(epochs=1)
    >>> _ = model.fit(np.ones((4, 2)), np.zeros(4, int), epochs=2, verbose=0, callbacks=[snapshots])
    >>> len(snapshots.models)
    2
    """

    def __init__(self, epochs: int, count: int | None = None) -> None:
        super().__init__()
        require(isinstance(epochs, int) and epochs >= 1, f"epochs must be a whole number from 1, received {epochs!r}")
        require(
            count is None or (isinstance(count, int) and count >= 2),
            f"count must be None or a whole number from 2, received {count!r}",
        )
        self.epochs, self.count = epochs, count
        self.models: list[keras.Model] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks that there will be an ensemble."""
        self.models = []
        planned = self.params["epochs"]
        require(
            planned // self.epochs >= 2,
            f"a snapshot ensemble has two members or more: {planned} epochs with a snapshot every {self.epochs} give "
            f"{planned // self.epochs}. Train for {2 * self.epochs} epochs or more, or take shorter cycles",
        )

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """At the end of a cycle, keeps a copy of the model."""
        if (epoch + 1) % self.epochs == 0:
            self.models = [*self.models, same(self.model)][-(self.count or 0) :]
            compile_like(self.model, self.models[-1], to_probabilities=False)
