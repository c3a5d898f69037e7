"""TFMOT's pruning policies: which layers of a model are pruned."""

import abc
from collections.abc import Callable

import keras

from tfopt.config import require
from tfopt.prune.policy import pays_on_xnnpack


class PruningPolicy(abc.ABC):
    """Says which layers are pruned; a base class for policies of your own."""

    @abc.abstractmethod
    def allow_pruning(self, layer: keras.Layer) -> bool:
        """Whether a layer is to be pruned."""

    @abc.abstractmethod
    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raises a ValueError where a model cannot be pruned in this way."""


class PruneForLatencyOnXNNPack(PruningPolicy):
    """Prunes the 1 x 1 convolutions that XNNPACK computes faster where they are sparse.

    What stands in the way is an error that names it. They are faster on ARM, in float32 files, from about 70 % zeros
    on; see `tfopt.prune.policy.pays_on_xnnpack`.

    Source: Elsen et al., Fast Sparse ConvNets, 2020, arXiv:1911.09723.
    """

    def __init__(self) -> None:
        self._pays: Callable[[keras.Layer], bool] | None = None

    def allow_pruning(self, layer: keras.Layer) -> bool:
        """Whether it is one of these convolutions; before a model was looked at, whether it is 1 x 1."""
        if self._pays is not None:
            return self._pays(layer)
        return isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1)

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Looks at the model.

        Raises:
          ValueError: a layer stands in the way, or it has no global average pooling that keeps the dimensions.
        """
        pools = [each for each in model._flatten_layers() if isinstance(each, keras.layers.GlobalAveragePooling2D)]
        require(
            any(pool.keepdims for pool in pools),
            f"Could not find a GlobalAveragePooling2D layer with keepdims = True in {model.name!r}: XNNPACK's sparse "
            "kernels end there; write keras.layers.GlobalAveragePooling2D(keepdims=True)",
        )
        self._pays = pays_on_xnnpack(model)
