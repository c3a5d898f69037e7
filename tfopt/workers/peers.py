"""What processes that train together say to each other while they do: texts, decisions, the chief's weights."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.train.strategies import worker_count, worker_index


class Peers:
    """The processes of a strategy; of most strategies there is this one only, which agrees with itself.

    Every process must make the same calls in the same order.

    >>> Peers(tf.distribute.get_strategy()).texts("hello")
    ['hello']
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        self.count, self.index = worker_count(strategy), worker_index(strategy)

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes files."""
        return self.index == 0

    def texts(self, text: str) -> list[str]:
        """What each process gave, in their order."""
        if self.count == 1:
            return [text]
        content = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        sizes = self._sums(np.eye(self.count, dtype=np.int64)[self.index] * len(content))
        # Never without a column: a collective operation on nothing ends the process.
        table = np.zeros((self.count, max(1, int(sizes.max()))), np.int32)
        table[self.index, : len(content)] = content
        rows = self._sums(table)
        return [row[:size].astype(np.uint8).tobytes().decode() for row, size in zip(rows, sizes, strict=True)]

    def chief_says(self, text: str) -> str:
        """What the chief gave."""
        return self.texts(text)[0]

    def wait(self) -> None:
        """Returns when every process has called it."""
        self.texts("")

    def take_weights_of_chief(self, variables: Sequence[keras.Variable]) -> None:
        """Sets variables to the chief's values, where this process may have computed others.

        Raises:
          RuntimeError: the chief has other variables.
        """
        if self.count == 1:
            return
        shapes = self.texts(repr([tuple(each.shape) for each in variables]))
        if len(set(shapes)) > 1:
            raise RuntimeError(f"workers came to models of different shapes before they train: {' | '.join(shapes)}")
        for variable in variables:
            value = keras.ops.convert_to_numpy(variable)
            # Integers and booleans travel in 64 bits; floats as they are.
            wide = value if value.dtype.kind == "f" else value.astype(np.int64)
            variable.assign(self._sums(wide if self.is_chief else np.zeros_like(wide)).astype(value.dtype))

    def _sums(self, values: np.ndarray) -> np.ndarray:
        replicas = self.strategy.num_replicas_in_sync // self.count
        total = _summed(self.strategy)(tf.convert_to_tensor(values))
        return total.numpy() // replicas if values.dtype.kind != "f" else total.numpy() / replicas


@functools.lru_cache(maxsize=4)
def _summed(strategy: tf.distribute.Strategy) -> Any:
    @tf.function(reduce_retracing=True)
    def summed(values: tf.Tensor) -> tf.Tensor:
        each = strategy.run(lambda part: part, args=(values,))
        return strategy.reduce("SUM", each, axis=None)

    return summed
