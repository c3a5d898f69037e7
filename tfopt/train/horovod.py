"""`HorovodStrategy`: processes that Horovod has started train together, in the same step as on any other strategy.

Horovod's own `DistributedGradientTape` takes the mean of the processes' gradients, which is that of one device only
where all have as many examples of a batch, and knows TensorFlow's variables only, not those of Keras 3. Here each
process weighs its gradient by its share first, and the weighted gradients are summed by the operation behind that tape,
`horovod.tensorflow.allreduce`; so are metrics and the statistics of BatchNormalization. In equal shares the step is
the tape's (tests/test_horovod.py). Horovod is imported when a strategy is made.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

# TensorFlow has no public class to build a strategy on that is known to Keras as one of several workers.
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

from tfopt.config import require

_NEEDED = (
    "the strategy horovod needs Horovod, built for TensorFlow: tfopt/train/STRATEGIES.md says how; multi_worker does "
    "the same without it"
)


class HorovodStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """One replica in each process that `horovodrun` has started, on its own GPU where there are any, else on the CPU.

    To Keras and tfopt it is a MultiWorkerMirroredStrategy whose messages go through Horovod; TensorFlow starts no
    servers, and TF_CONFIG plays no part.

    Raises:
      ModuleNotFoundError: Horovod is not there, or was not built for this TensorFlow.
      RuntimeError: TensorFlow has started already, so that this process cannot choose its GPU any more.
      ValueError: the processes may come and go (elastic Horovod), or are more than this host has GPUs.
    """

    def __init__(self) -> None:
        require(
            os.environ.get("HOROVOD_ELASTIC", "0") != "1",
            "tfopt trains with as many processes as it began with, and Horovod is to change their number: leave "
            "--min-np and --max-np of horovodrun out",
        )
        horovod = _imported()
        horovod.init()
        if horovod.size() == 1:
            logging.warning("Horovod has started this process alone: `horovodrun -np 2 python ...` starts two")
        tf.distribute.Strategy.__init__(self, _Extended(self, horovod))


class _Extended(CollectiveAllReduceExtended):
    """What TensorFlow's own does by collective operations, through Horovod."""

    def __init__(self, strategy: HorovodStrategy, horovod: Any) -> None:
        self._horovod = horovod
        # Horovod knows how to reach the processes: these are names only.
        names = [f"rank-{rank}" for rank in range(horovod.size())]
        workers = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": names}), task_type="worker", task_id=horovod.rank()
        )
        super().__init__(strategy, workers, tf.distribute.experimental.CommunicationOptions())

    def _initialize_strategy(self, cluster_resolver: Any, devices: Any) -> None:
        self._initialize_local(cluster_resolver, devices=(_own_device(self._horovod.local_rank()),))
        self._num_workers, self._id_in_cluster = self._horovod.size(), self._horovod.rank()
        self._is_chief = self._id_in_cluster == 0

    def _get_variable_creator_initial_value(self, replica_id: int, device: str, primary_var: Any, **given: Any) -> Any:
        def of_chief() -> tf.Tensor:
            value = given["initial_value"]
            own = tf.convert_to_tensor(value() if callable(value) else value, given.get("dtype"))
            return _sent(lambda each: self._horovod.broadcast(each, root_rank=0), own)

        return of_chief

    def _reduce_to(self, reduce_op: Any, value: Any, destinations: Any, options: Any) -> Any:
        own = self._local_results(value)[0]
        if not isinstance(own, tf.IndexedSlices):
            own = tf.convert_to_tensor(own)
        horovod = self._horovod
        operation = horovod.Average if reduce_op == tf.distribute.ReduceOp.MEAN else horovod.Sum
        return _sent(lambda each: horovod.allreduce(each, op=operation), own)

    def _batch_reduce_to(self, reduce_op: Any, value_destination_pairs: Sequence[Any], options: Any) -> list[Any]:
        return [self._reduce_to(reduce_op, value, where, options) for value, where in value_destination_pairs]

    def _use_merge_call(self) -> bool:
        # All sums over replicas then come by the two methods above; within XLA, TensorFlow's own would send nothing.
        return True

    def _gather_to_implementation(self, value: Any, destinations: Any, axis: int, options: Any) -> tf.Tensor:
        require(axis == 0, f"Horovod gathers along the first axis, received axis={axis}")
        return _sent(self._horovod.allgather, tf.convert_to_tensor(self._local_results(value)[0]))


def _sent(operation: Callable[[Any], Any], own: Any) -> Any:
    """What comes of a message; Horovod has no kernels for bfloat16, whose values float32 has too."""
    return tf.cast(operation(tf.cast(own, tf.float32)), own.dtype) if own.dtype == tf.bfloat16 else operation(own)


def _imported() -> Any:
    try:
        import horovod.tensorflow
    except ImportError as error:
        raise ModuleNotFoundError(f"{_NEEDED} ({error})") from error
    return horovod.tensorflow


def _own_device(local_rank: int) -> str:
    """The device of one of the processes on this host."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU:0"
    require(
        local_rank < len(gpus),
        f"Horovod has started {local_rank + 1} processes or more on this host, which has {len(gpus)} GPUs: start one "
        "for each GPU",
    )
    try:
        tf.config.set_visible_devices(gpus[local_rank], "GPU")
    except RuntimeError as error:
        raise RuntimeError(
            f"this process cannot choose its GPU any more, as TensorFlow has started: make the strategy before "
            f"anything else ({error})"
        ) from error
    return "GPU:0"
