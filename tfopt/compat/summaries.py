"""What the callbacks that write for TensorBoard share."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import require


class Summaries(keras.callbacks.TensorBoard):
    """`keras.callbacks.TensorBoard` that writes numbers of its own to the folder `metrics`.

    Args:
      log_dir: folder of the logs.

    Raises:
      ModuleNotFoundError: TensorBoard is not installed.
      ValueError: `log_dir` is empty.
    """

    def __init__(self, log_dir: str, **kwargs: Any) -> None:
        require(
            isinstance(log_dir, str) and bool(log_dir),
            f"log_dir must be the path of a folder, as a string; received {log_dir!r}",
        )
        if importlib.util.find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                f"{type(self).__name__} needs the package tensorboard: pip install 'tfopt[tensorboard]'"
            )
        super().__init__(log_dir=log_dir, **kwargs)
        self._own_writer = tf.summary.create_file_writer(os.path.join(log_dir, "metrics"))

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers under their names."""
        with self._own_writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._own_writer.flush()

    def write_histograms(self, values: Mapping[str, Any], step: int) -> None:
        """Writes the distribution of arrays under their names."""
        with self._own_writer.as_default(step):
            for name, value in values.items():
                tf.summary.histogram(name, value)
        self._own_writer.flush()
