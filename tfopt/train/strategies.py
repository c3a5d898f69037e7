"""`strategy`: on which devices and hosts a model trains, by one word."""

import os
from collections.abc import Callable, Mapping

import tensorflow as tf
from absl import logging

from tfopt.config import did_you_mean, require
from tfopt.train.horovod import HorovodStrategy

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu", "horovod")


def strategy(name: str = "auto", replicas: int | None = None) -> tf.distribute.Strategy:
    """A TensorFlow strategy by its name.

    Args:
      name: "one_device": TensorFlow's first accelerator, or the CPU. "mirrored": a copy of the model on each GPU of
        this host. "multi_worker": on each of several hosts or processes, which the environment variable TF_CONFIG
        names; see `tfopt.workers`. "horovod": on each that `horovodrun` has started. "tpu": on the cores of a TPU.
        "auto": "tpu", "multi_worker", "horovod" or "mirrored" where there is one for it, else "one_device".
      replicas: copies on this host, for "mirrored"; None: one a GPU. Where there are no GPUs, so many logical CPUs
        are made: to try things out, not to be faster.

    Raises:
      ValueError: no such name, or too few devices.
      ModuleNotFoundError: Horovod is asked for and not there, or not built for TensorFlow.
      RuntimeError: TensorFlow has started already, so that no devices can be made and no workers be met.

    >>> strategy("one_device").num_replicas_in_sync
    1
    """
    require(
        name in STRATEGIES,
        f"no strategy is called {name!r}; {did_you_mean(name, STRATEGIES)}",
    )
    require(
        replicas is None or name == "mirrored",
        f"replicas={replicas} goes with the strategy mirrored, received {name!r}",
    )
    chosen, reason = (name, "as asked") if name != "auto" else _best()
    logging.info("strategy %s: %s", chosen, reason)
    return _MAKE[chosen](replicas)


def is_one_device(chosen: tf.distribute.Strategy) -> bool:
    """Whether a strategy is TensorFlow's own way on one device."""
    # The class has no public name, and inside the scope of another strategy there is no object of it to compare with.
    return type(chosen).__name__ == "_DefaultDistributionStrategy"


def worker_count(chosen: tf.distribute.Strategy) -> int:
    """How many processes train together."""
    return _task(chosen)[1]


def worker_index(chosen: tf.distribute.Strategy) -> int:
    """The number of this process among them; 0 is the chief, which writes files."""
    return _task(chosen)[0]


def describe(chosen: tf.distribute.Strategy) -> Mapping[str, str]:
    """What was found on this host, and what trains: for the report.

    >>> sorted(describe(strategy("one_device")))
    ['devices', 'memory', 'strategy']
    """
    found = [
        f"{len(devices)} {kind}" for kind in ("CPU", "GPU", "TPU") if (devices := tf.config.list_physical_devices(kind))
    ]
    count, kind = worker_count(chosen), "one device" if is_one_device(chosen) else type(chosen).__name__
    workers = f" in {count} processes" if count > 1 else ""
    best, why = _best()
    reason = why if best == _name(chosen) else "as asked"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "devices": ", ".join(found),
        "memory": f"{memory:.0f} GB",
        "strategy": f"{kind}, {chosen.num_replicas_in_sync} replicas{workers}: {reason}",
    }


def _name(chosen: tf.distribute.Strategy) -> str:
    """What `strategy` calls it; "" for one of the user's own kind."""
    kinds = {
        "horovod": HorovodStrategy,
        "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,
        "mirrored": tf.distribute.MirroredStrategy,
        "tpu": tf.distribute.TPUStrategy,
    }
    if is_one_device(chosen):
        return "one_device"
    return next((name for name, kind in kinds.items() if isinstance(chosen, kind)), "")


def _best() -> tuple[str, str]:
    gpus = tf.config.list_physical_devices("GPU")
    if tf.config.list_physical_devices("TPU") or "TPU_NAME" in os.environ:
        return "tpu", "there is a TPU"
    if "TF_CONFIG" in os.environ:
        return "multi_worker", "TF_CONFIG names workers"
    if "HOROVOD_SIZE" in os.environ:
        return "horovod", "horovodrun has started this process"
    if len(gpus) > 1:
        return "mirrored", f"there are {len(gpus)} GPUs"
    return "one_device", f"there is one {'GPU' if gpus else 'CPU'} and no other host"


def _one_device(replicas: int | None) -> tf.distribute.Strategy:
    return tf.distribute.get_strategy()


def _mirrored(replicas: int | None) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if gpus:
        wanted = replicas or len(gpus)
        require(wanted <= len(gpus), f"replicas={wanted}, but this host has {len(gpus)} GPUs")
        return tf.distribute.MirroredStrategy([f"GPU:{number}" for number in range(wanted)])
    require(
        replicas is not None,
        "the strategy mirrored puts a copy of the model on each GPU, and TensorFlow finds none here: use one_device, "
        "or pass replicas=2 for two logical CPUs, to try it out",
    )
    assert replicas is not None
    cpu = tf.config.list_physical_devices("CPU")[0]
    made = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(made) < replicas:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        except RuntimeError as error:
            raise RuntimeError(
                f"TensorFlow has started with {len(made)} logical CPUs already, so {replicas} cannot be made any more: "
                "make the strategy before anything else"
            ) from error
    return tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)])


def _multi_worker(replicas: int | None) -> tf.distribute.Strategy:
    require(
        "TF_CONFIG" in os.environ,
        "the strategy multi_worker needs to know the workers: pass --workers=host:port,host:port or --local_workers=2 "
        "to a recipe, or set TF_CONFIG",
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise RuntimeError(
            f"workers cannot be met any more, as TensorFlow has started in this process: make the strategy before "
            f"anything else ({error})"
        ) from error


def _tpu(replicas: int | None) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError, OSError) as error:
        raise ValueError(
            f"no TPU answers ({error}): set TPU_NAME, run on a TPU host, or use another strategy"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _horovod(replicas: int | None) -> tf.distribute.Strategy:
    return HorovodStrategy()


_MAKE: Mapping[str, Callable[[int | None], tf.distribute.Strategy]] = {
    "one_device": _one_device,
    "mirrored": _mirrored,
    "multi_worker": _multi_worker,
    "tpu": _tpu,
    "horovod": _horovod,
}


def _task(chosen: tf.distribute.Strategy) -> tuple[int, int]:
    """(number of this process, how many there are)."""
    resolver = chosen.cluster_resolver if isinstance(chosen, tf.distribute.MultiWorkerMirroredStrategy) else None
    if resolver is None:
        return 0, 1
    spec = resolver.cluster_spec().as_dict()
    chiefs = len(spec.get("chief", []))
    total = chiefs + len(spec.get("worker", []))
    return (0 if resolver.task_type == "chief" else chiefs + (resolver.task_id or 0)), max(1, total)
