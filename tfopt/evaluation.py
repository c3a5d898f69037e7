"""The metrics of a model on a split."""

import keras

from tfopt.data import Data
from tfopt.data.dataset import Split


def evaluate(model: keras.Model, data: Data, split: Split = "test") -> dict[str, float]:
    """Loss and metrics of a model on a split, by name. Compiles the model for its task if it is not.

    >>> import numpy as np
    >>> from tfopt.data import from_arrays
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="softmax")])
    >>> sorted(evaluate(model, from_arrays((np.ones((20, 2)), np.arange(20) % 2))))
    ['accuracy', 'loss']
    """
    from tfopt.train.task import build_state, task_of

    # Not "auto": Keras would take XLA, which is many times slower on a CPU.
    task_of(model, data).compile(model, jit_compile=False)
    batches = data.batches(split)
    build_state(model, batches)
    metrics = model.evaluate(batches, verbose=0, return_dict=True)
    return {name: float(value) for name, value in metrics.items()}
