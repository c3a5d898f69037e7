"""`Clustered`: the promise that a variable has few different values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfopt.config import Config, require


@dataclasses.dataclass(frozen=True, repr=False)
class Clustered(Config):
    """Weights that share a value go on sharing one: a variable has no more different values than promised.

    Args:
      targets: by variable path, the number of different values, at least 1.
      per_channel: whether each slice along the last axis has clusters of its own; `targets` count them all.

    Raises:
      ValueError: for a number below 1.

    >>> Clustered({"dense/kernel": 16})
    Clustered(targets={'dense/kernel': 16})
    """

    targets: Mapping[str, int]
    per_channel: bool = False
    kind: ClassVar[str] = "clustered"

    def __post_init__(self) -> None:
        for path, count in self.targets.items():
            require(
                isinstance(count, int) and count >= 1,
                f"the number of clusters of {path!r} must be a whole number from 1, received {count!r}",
            )

    def constraint(self, variable: keras.Variable) -> "FixedClusters | None":
        """Gives the weights that share a value now their mean, after each step."""
        return FixedClusters(variable) if variable.path in self.targets else None

    def check(self, model: keras.Model) -> list[str]:
        """The variables that are missing, or have more different values than promised."""
        found = {variable.path: variable for variable in model.variables if variable.path in self.targets}
        broken = [f"{path}: the model has no such variable any more" for path in sorted(self.targets.keys() - found)]
        for path, variable in found.items():
            values, promised = len(np.unique(keras.ops.convert_to_numpy(variable))), self.targets[path]
            if values > promised:
                broken.append(f"{path}: {promised} different values were promised, it has {values}")
        return broken

    def check_tflite(self, path: Any, model: keras.Model) -> list[str]:
        """The variables whose clusters are not found in any weight tensor of the file, in their places.

        Of a quantization-aware model they are clusters of the whole tensor's integers; of others, whose channels are
        scaled one by one on the way to the file, clusters of each channel.
        """
        from tfopt.quantize.frozen import is_quantized
        from tfopt.tflite.match import missing_clusters

        kernels = {
            variable.path: keras.ops.convert_to_numpy(variable)
            for variable in model.variables
            if variable.path in self.targets
        }
        return [
            f"{name}: no tensor of the file has its {len(np.unique(kernels[name]))} clusters in their places"
            for name in missing_clusters(path, kernels, by_channel=not is_quantized(model))
        ]

    def follow(self, renamed: Mapping[str, str]) -> "Clustered":
        """The same promise for variables with new paths."""
        return dataclasses.replace(
            self, targets={renamed.get(path, path): count for path, count in self.targets.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes the same promise."""
        return {"kind": self.kind, "targets": dict(self.targets), "per_channel": self.per_channel}


class FixedClusters:
    """A constraint that keeps equal what was equal in a variable when it was made: all take their mean.

    Source: TensorFlow Model Optimization's cluster-preserving training; Han et al., Deep Compression, 2016,
    arXiv:1510.00149, section 3.
    """

    def __init__(self, variable: keras.Variable) -> None:
        values, members = np.unique(keras.ops.convert_to_numpy(variable), return_inverse=True)
        self.count, self.members = len(values), members.reshape(-1).astype("int32")

    def __call__(self, value: Any) -> tf.Tensor:
        """The value with the mean of each cluster in its places."""
        value = tf.convert_to_tensor(value)
        # In float32: the mean of many numbers of 16 bits is not one of them.
        flat = tf.cast(tf.reshape(value, (-1,)), tf.float32)
        means = tf.math.unsorted_segment_mean(flat, self.members, self.count)
        return tf.cast(tf.reshape(tf.gather(means, self.members), value.shape), value.dtype)
