"""Shards on Ray Data: on this machine, or on all of a cluster that shares the folders."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tfopt.predict.folder import Shard
from tfopt.predict.local import portable
from tfopt.predict.shards import Job, Predictor


def run_on_ray(
    job: Job, numbers: Sequence[int], workers: int, address: str | None, done: Callable[[Shard], Any]
) -> None:
    """Does shards in Ray's actors, each with the model loaded once.

    Args:
      job: what they have in common; its paths must be the same on all nodes.
      numbers: of the shards.
      workers: actors, at least 1.
      address: of a cluster; None: that of RAY_ADDRESS, else one on this machine for as long as it takes.
      done: is told of each finished shard.

    Raises:
      ImportError: Ray is not installed.
      Whatever a shard raises.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('engine="ray" needs Ray: install it with pip install "tfopt[ray]"') from error
    # Its word on each dataset would run into the progress bar.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with _connected(ray, address, workers * job.threads):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        shards: Any = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        records = shards.map(
            _Actor, fn_constructor_args=(job,), num_cpus=job.threads, compute=ray.data.ActorPoolStrategy(size=workers)
        )
        try:
            for record in records.iter_rows():
                done(Shard.from_json(record["shard"]))
        except ray.exceptions.RayError as error:
            raise _cause(error) from error


class _Actor:
    """Does a shard for each row that Ray hands to it."""

    def __init__(self, job: Job) -> None:
        self._predictor = Predictor(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["number"])
        try:
            return {"shard": self._predictor.shard(number, lambda rows: None).to_json()}
        except Exception as error:  # noqa: BLE001 - the driver raises it
            raise portable(error, number) from None


@contextlib.contextmanager
def _connected(ray: Any, address: str | None, processors: int) -> Iterator[None]:
    """A connection to Ray for the block; one that is there already stays."""
    if ray.is_initialized():
        yield
        return
    if address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False)
    else:
        # Actors that wait for a processor would never start.
        processors = max(os.cpu_count() or 1, processors)
        ray.init(num_cpus=processors, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _cause(error: BaseException) -> BaseException:
    """What the shard raised, below what Ray has wrapped around it."""
    while isinstance(inner := getattr(error, "cause", None) or error.__cause__, Exception):
        error = inner
    return error
