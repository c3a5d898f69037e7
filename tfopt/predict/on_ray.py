"""Shards on Ray Data: on this machine, or on all of a cluster that shares the folders."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tfopt.predict.folder import Shard
from tfopt.predict.local import PORTABLE, portable
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
                if record["error"]:
                    raise _decoded(record["error"])
                done(Shard.from_json(record["shard"]))
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray could not do the shards: {error}") from error


class _Actor:
    """Does a shard for each row that Ray hands to it."""

    def __init__(self, job: Job) -> None:
        self._predictor = Predictor(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["number"])
        try:
            return {"shard": self._predictor.shard(number, lambda rows: None).to_json(), "error": ""}
        except Exception as error:  # noqa: BLE001 - the driver raises it; Ray would hand on its own instead
            return {"shard": "", "error": _encoded(portable(error, number))}


def _encoded(error: Exception) -> str:
    return json.dumps([type(error).__name__, str(error), error.__notes__])


def _decoded(text: str) -> Exception:
    """The error of a shard.

    >>> _decoded(_encoded(portable(ValueError("no row"), 3))).__notes__
    ['in shard 3']
    """
    name, message, notes = json.loads(text)
    error = next(kind for kind in PORTABLE if kind.__name__ == name)(message)
    for note in notes:
        error.add_note(note)
    return error


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
