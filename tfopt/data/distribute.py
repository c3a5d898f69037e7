"""Batches from the workers of a tf.data service, each exactly once."""

import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfopt.config import require


def check_service(address: str, seconds: float = 3.0) -> None:
    """Raises a ConnectionError where nothing answers at the address, a ValueError where it is none."""
    protocol, _, target = address.rpartition("://")
    host, _, port = target.rpartition(":")
    require(
        protocol in ("", "grpc") and bool(host) and port.isdigit(),
        f"the address of a service must be such as 'grpc://localhost:5050', received {address!r}",
    )
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as error:
        raise ConnectionError(
            f"no tf.data service answers at {address} ({error}): start one with tfopt.data.local_service or "
            "`python -m tfopt.data.serve`, or check host, port and firewall"
        ) from error


def check_workers(source: tf.data.Dataset, batches: Callable[[tf.Tensor], tf.data.Dataset], name: str) -> None:
    """Raises a ValueError where workers cannot take the elements of `source`, or make batches of a seed."""
    ways_out = "pass Pipeline(snapshot=folder), on a disk that the workers share"
    try:
        tf.data.experimental.at(source, 0)
    except tf.errors.OpError as error:
        raise ValueError(
            f"workers of a service take examples by their number, which the training split of {name!r} does not allow "
            f"({str(error.message)[:150]}): {ways_out}"
        ) from error
    traced = tf.function(lambda seed: tf.data.experimental.to_variant(batches(seed)))
    graph = traced.get_concrete_function(tf.TensorSpec((), tf.int64)).graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    require(
        not any("PyFunc" in node.op for node in nodes),
        f"examples of {name!r} are made by Python code (tf.numpy_function or tf.py_function), which worker processes "
        f"cannot call: {ways_out}, or write what makes them in TensorFlow alone",
    )


def batches_by_number(
    numbers: tf.data.Dataset,
    source: tf.data.Dataset,
    order: tf.Tensor,
    batch_size: int,
    read: Callable[..., Any] | None,
    change: Callable[..., Any],
) -> tf.data.Dataset:
    """Batches with their numbers, the same wherever they are made.

    Args:
      numbers: of the batches, int64.
      source: elements that can be taken by their place.
      order: the place in `source` of each example of the epoch, int64, shape (examples,).
      batch_size: examples a batch; the last one has those that are left.
      read: makes an example of an element.
      change: `change(places, batch)`, of the batch and where its examples stand in the epoch.
    """
    size, parallel = tf.size(order, tf.int64), {"num_parallel_calls": tf.data.AUTOTUNE}

    def example(place: tf.Tensor) -> Any:
        element = tf.data.experimental.at(source, order[place])
        return place, element if read is None else read(*element)

    def unchanged(number: tf.Tensor) -> tf.data.Dataset:
        # A dataset of its own: so a number that is lost on its way to a worker cannot shift the examples of others.
        places = tf.data.Dataset.range(number * batch_size, tf.minimum((number + 1) * batch_size, size))
        return places.map(example, **parallel).batch(batch_size)

    return numbers.interleave(unchanged, **parallel, deterministic=False).map(
        lambda places, batch: (places[0] // batch_size, change(places, batch)), **parallel
    )


def distribute(batches_of: Callable[[tf.data.Dataset], tf.data.Dataset], steps: int, address: str) -> tf.data.Dataset:
    """The batches 0 to `steps` - 1, each once, made by the workers of a service, in the order in which they are ready.

    Workers are given the numbers one by one (DYNAMIC sharding). What a worker was given when it died, nobody is given
    again: what is missing when the others have ended is made here.

    Args:
      batches_of: of numbers, the batches with their numbers; a pure function.
      steps: how many batches.
      address: of the service, such as "grpc://localhost:5050".
    """
    service = tf.data.experimental.service
    made = batches_of(tf.data.Dataset.range(steps))
    with warnings.catch_warnings():
        # TensorFlow's own look at the options of a dataset in a graph.
        warnings.filterwarnings("ignore", "To make it possible to preserve tf.data options")
        served = made.apply(service.distribute(service.ShardingPolicy.DYNAMIC, address))
    _, spec = made.element_spec
    nothing = tf.nest.map_structure(lambda each: tf.zeros([size or 0 for size in each.shape], each.dtype), spec)
    ended = served.concatenate(tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), nothing)))

    def unpack(is_new: tf.Tensor, missing: tf.Tensor, batch: Any) -> tf.data.Dataset:
        made_here = batches_of(tf.data.Dataset.from_tensor_slices(missing)).map(lambda number, batch: batch)
        return tf.data.Dataset.from_tensors(batch).take(tf.cast(is_new, tf.int64)).concatenate(made_here)

    return ended.scan(tf.zeros([steps], tf.bool), _note).flat_map(unpack)


def _note(seen: tf.Tensor, received: tuple[tf.Tensor, Any]) -> tuple[tf.Tensor, Any]:
    """Ticks off a batch; at the end, number -1, gives the numbers of the missing ones."""
    number, batch = received
    is_batch, place = number >= 0, tf.maximum(number, 0)
    is_new = is_batch & ~seen[place]
    missing = tf.where(~seen & ~is_batch)[:, 0]
    if_any = tf.cond(tf.size(missing) > 0, lambda: _say(missing), tf.no_op)
    with tf.control_dependencies([if_any]):
        missing = tf.identity(missing)
    return tf.tensor_scatter_nd_update(seen, [[place]], [seen[place] | is_batch]), (is_new, missing, batch)


def _say(missing: tf.Tensor) -> tf.Operation:
    return tf.print(
        "A worker of the data service died: batches that it had begun are made here:",
        tf.size(missing),
        output_stream=sys.stderr,
    )
