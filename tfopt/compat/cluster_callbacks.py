"""`ClusteringSummaries`."""

from typing import Any

from tfopt.compat.cluster import ClusterWeights
from tfopt.compat.rebuild import layers_of
from tfopt.compat.summaries import Summaries
from tfopt.config import require
from tfopt.variables import step_counter


class ClusteringSummaries(Summaries):
    """Writes the distribution of each clustered variable for TensorBoard (extra `tensorboard`).

    Args:
      log_dir: folder of the logs.
      cluster_update_freq: "epoch", "batch", or a number of batches.
      **kwargs: as for `keras.callbacks.TensorBoard`.

    Raises:
      ModuleNotFoundError: TensorBoard is not installed.
      ValueError: `log_dir` is empty, or the frequency is no such thing.
    """

    def __init__(self, log_dir: str = "logs", cluster_update_freq: Any = "epoch", **kwargs: Any) -> None:
        super().__init__(log_dir, **kwargs)
        self.cluster_update_freq = 1 if cluster_update_freq == "batch" else cluster_update_freq
        is_number = isinstance(self.cluster_update_freq, int) and self.cluster_update_freq >= 1
        require(
            self.cluster_update_freq == "epoch" or is_number,
            f"cluster_update_freq must be 'epoch', 'batch' or a number of batches, received {cluster_update_freq!r}",
        )
        self.continuous_batch = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Writes where it is due."""
        super().on_train_batch_end(batch, logs)
        self.continuous_batch += 1
        if self.cluster_update_freq != "epoch" and self.continuous_batch % self.cluster_update_freq == 0:
            self._write()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes where it is due."""
        super().on_epoch_end(epoch, logs)
        if self.cluster_update_freq == "epoch":
            self._write()

    def _write(self) -> None:
        values = {
            f"clustering/{layer.name}/{variable.name}": variable.numpy()
            for layer in layers_of(self.model, ClusterWeights)
            for variable in layer.clusterable_variables()
        }
        self.write_histograms(values, int(step_counter(self.model).numpy()))
