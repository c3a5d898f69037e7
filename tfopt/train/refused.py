"""What looks as if it trained on several devices, and does not: refused before training."""

from typing import Any

import keras


def refuse_keras_distribution() -> None:
    """Refuses a distribution of `keras.distribution`, which TensorFlow's backend of Keras does not carry out.

    Raises:
      ValueError: `keras.distribution.set_distribution` was called, or its scope is open.
    """
    found = keras.distribution.distribution()
    if found is not None:
        raise ValueError(
            f"keras.distribution.{type(found).__name__} is set, which Keras {keras.__version__} ignores with "
            "TensorFlow: the model would train on one device without a word. Call "
            "keras.distribution.set_distribution(None), and "
            'use strategy="mirrored" or "multi_worker" to share out the batch, or tfopt.train.pipeline_parallel to '
            "share out the layers"
        )


def refuse_horovod_optimizer(optimizer: Any) -> None:
    """Refuses Horovod's `DistributedOptimizer`, whose hooks Keras 3 never calls: no gradient would be exchanged.

    Args:
      optimizer: any optimizer, also one inside a `LossScaleOptimizer`; Horovod need not be installed.

    Raises:
      ValueError: it is one of Horovod's.
    """
    while optimizer is not None:
        # Horovod makes a class with the name and as a child of the optimizer's own, and with its own methods.
        if any(
            cls.__module__.partition(".")[0] == "horovod" or "_HAS_AGGREGATE_GRAD" in vars(cls)
            for cls in type(optimizer).__mro__
        ) or hasattr(optimizer, "_allreduce_grads"):
            raise ValueError(
                f"the optimizer {optimizer.name!r} is a Horovod DistributedOptimizer, which exchanges no gradients "
                "under Keras 3: each process would train a model of its own without a word. Pass the plain "
                f'keras.optimizers.{type(optimizer).__name__}, and strategy="horovod", which sums the gradients itself'
            )
        optimizer = getattr(optimizer, "inner_optimizer", None)
