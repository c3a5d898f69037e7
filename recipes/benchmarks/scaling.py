"""How a training step scales over local workers, how much of it is communication, and what many hosts would make of it.

    python -m recipes.benchmarks.scaling --rounds=9 --steps=4

The same model and the same batch on 1, 2 and 4 processes, each on a core of its own while there are enough; then they
share. All wait for their turns from the start: medians of times, and of the ratios of each round. The all-reduces of
a step are timed by themselves in the same processes. Latency and bandwidth are fitted to all-reduces of several sizes;
with the step time of one worker, which is measured, they give a model of the steps of all others, and a projection.
Linux only.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
from absl import app, flags

from recipes.benchmarks.rounds import ROUNDS
from recipes.benchmarks.step_models import CLASSES, STEPS
from tfopt.config import require
from tfopt.report import describe_environment
from tfopt.train import strategy
from tfopt.train.communication import (
    Network,
    Point,
    fit_network,
    hierarchical_all_reduce,
    ring_all_reduce,
    step_time,
)
from tfopt.train.models import ds_cnn
from tfopt.train.replicas import on_strategy
from tfopt.train.task import build_state
from tfopt.workers.addresses import find_workers
from tfopt.workers.supervise import local_workers

_COUNTS = flags.DEFINE_list("counts", ["1", "2", "4"], "How many workers: 1, and others in rising order.")
_BATCH = flags.DEFINE_integer("global_batch", 512, "Examples a step of all workers, a multiple of their numbers.")
_WIDTH = flags.DEFINE_integer("width", 64, "Filters of the DS-CNN: its bytes.", lower_bound=1)
_LATENCY = flags.DEFINE_float("host_latency", None, "Seconds between hosts, for the projection; else as measured here.")
_BANDWIDTH = flags.DEFINE_float("host_bandwidth", None, "Bytes a second between hosts; else as measured here.")
_WORKER = flags.DEFINE_bool("is_worker", False, "Internal: is one of the workers.")

PROJECTED, PER_HOST = (8, 64, 512), 8
# Bytes of the all-reduces that the network is fitted to.
SIZES = (2**10, 2**14, 2**18, 2**22)
_REPEATS = 10
# Of a turn. The first has the start of all processes in it.
_MOST_SECONDS = 600


# What a worker does


def work() -> None:
    """Trains, and prints its times at each line that it reads; ends with its input."""
    workers = find_workers()
    assert workers is not None
    count, index = len(workers.addresses), workers.index
    cores = sorted(os.sched_getaffinity(0))
    # Before TensorFlow counts them for its threads.
    os.sched_setaffinity(0, {cores[index % len(cores)]})
    on = strategy("multi_worker")
    keras.utils.set_random_seed(0)
    with on_strategy(ds_cnn((32, 32, 3), CLASSES, filters=_WIDTH.value), on) as copy:
        copy.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        whole_batch = steps(copy, on, _BATCH.value)
        small_batch = steps(copy, on, _share()) if count == 1 else None
        of_a_step = collectives(copy, on) if count > 1 else []
        exchanges = {size: exchange(on, [size]) for size in SIZES} if count > 1 else {}
        all_of_a_step = exchange(on, of_a_step)
        for _line in sys.stdin:
            found: dict[str, Any] = {"sizes": of_a_step, "step": whole_batch()}
            if small_batch:
                found["share"] = small_batch()
            found["communication"] = time_call(all_of_a_step) if of_a_step else 0.0
            found["all_reduce"] = {size: time_call(each) for size, each in exchanges.items()}
            print(json.dumps(found), flush=True)


def steps(copy: keras.Model, on: tf.distribute.Strategy, batch: int) -> Callable[[], float]:
    """A function that takes steps as `fit` does, and returns the seconds of one."""
    share, rng = batch // on.num_replicas_in_sync, np.random.default_rng(0)
    arrays = rng.random((share, 32, 32, 3), "float32"), rng.integers(0, CLASSES, share)
    # The same share, again and again: what it costs to read is not the question here. And of one iterator, for which
    # `fit` cannot be asked: TensorFlow now and then waits for its autotuning, up to a minute, before it deletes one.
    endless = tf.data.Dataset.from_tensors(arrays).repeat()
    batches = iter(on.distribute_datasets_from_function(lambda context: endless))
    build_state(copy, endless)
    copy.make_train_function()

    def take() -> float:
        # All workers are here when the first step ends, which may trace too.
        ends = []
        for _ in range(STEPS.value + 1):
            float(copy.train_function(batches)["loss"])
            ends.append(time.perf_counter())
        return (ends[-1] - ends[0]) / STEPS.value

    return take


def collectives(copy: keras.Model, on: tf.distribute.Strategy) -> list[int]:
    """Bytes of each all-reduce of a training step, in their order: gradients, statistics of a batch, the loss."""

    @tf.function(autograph=False)
    def step(batch: Any) -> Any:
        outputs = on.run(copy.train_step, args=(batch,))
        return tf.nest.map_structure(lambda each: on.reduce("MEAN", each, axis=None), outputs)

    share = _BATCH.value // on.num_replicas_in_sync
    batch = tf.TensorSpec((share, 32, 32, 3)), tf.TensorSpec((share,), tf.int64)
    operations = step.get_concrete_function(batch).graph.get_operations()
    sent = [each.inputs[0] for each in operations if each.type.startswith("CollectiveReduce")]
    return [each.shape.num_elements() * each.dtype.size for each in sent]


def exchange(on: tf.distribute.Strategy, sizes: Sequence[int]) -> Any:
    """A function of all-reduces of so many bytes, each after the one before it, all of them _REPEATS times."""

    def one_by_one(value: tf.Tensor) -> tf.Tensor:
        replica = tf.distribute.get_replica_context()
        for size in sizes:
            sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.fill([max(1, size // 4)], value))
            value = sums[0] / replica.num_replicas_in_sync
        return value

    @tf.function
    def repeated() -> tf.Tensor:
        value = tf.constant(1.0)
        for _ in tf.range(_REPEATS):
            value = on.run(one_by_one, args=(value,))
        return value

    return repeated


def time_call(function: Any) -> float:
    """Seconds of one of its repetitions."""
    # All workers are here when it ends.
    function().numpy()
    started = time.perf_counter()
    function().numpy()
    return (time.perf_counter() - started) / _REPEATS


def _share() -> int:
    """Examples of each of the most workers."""
    return int(_BATCH.value) // max(map(int, _COUNTS.value))


# What starts the workers


class Team:
    """Processes that train together whenever it is their turn, for as long as the block lasts."""

    def __init__(self, count: int) -> None:
        self.count, self.processes, self.errors = count, [], []  # type: int, list[Any], list[Any]

    def __enter__(self) -> "Team":
        values = {"counts": ",".join(_COUNTS.value), "global_batch": _BATCH.value, "width": _WIDTH.value}
        given = [f"--{name}={value}" for name, value in {**values, "steps": STEPS.value}.items()]
        command = [sys.executable, "-m", "recipes.benchmarks.scaling", "--is_worker", *given]
        for workers in local_workers(self.count):
            environ = {**os.environ, "TF_CONFIG": workers.config(), "TF_CPP_MIN_LOG_LEVEL": "2"}
            # A file, since nobody reads along, and a pipe would be full one day.
            self.errors.append(tempfile.TemporaryFile())
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors[-1]}
            self.processes.append(subprocess.Popen(command, env=environ, text=True, **pipes))
        return self

    def turn(self) -> dict[str, Any]:
        """One measurement of all, of each time that of the worker who needed most."""
        for process in self.processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        timer = threading.Timer(_MOST_SECONDS, self._kill)
        timer.start()
        lines = [process.stdout.readline() for process in self.processes]
        timer.cancel()
        if "" in lines:
            self.errors[lines.index("")].seek(0)
            said = self.errors[lines.index("")].read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"worker {lines.index('')} of {self.count} ended, or took too long: {said}")
        found = [json.loads(line) for line in lines]
        slowest = {name: max(each[name] for each in found) for name in ("step", "communication")}
        points = {int(size): max(each["all_reduce"][size] for each in found) for size in found[0]["all_reduce"]}
        return {**found[0], **slowest, "all_reduce": points}

    def __exit__(self, *_: Any) -> None:
        self._kill()
        for process, errors in zip(self.processes, self.errors, strict=True):
            process.wait()
            for each in (process.stdin, process.stdout, errors):
                each.close()

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()


def measure(counts: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """The turns of each number of workers, one after the other in each round."""
    teams = {count: Team(count) for count in counts}
    turns: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    started: list[Team] = []
    try:
        for team in teams.values():
            started.append(team.__enter__())
        # The first round waits for the processes and is not counted.
        for number in range(ROUNDS.value + 1):
            for count, team in teams.items():
                found = team.turn()
                if number:
                    turns[count].append(found)
    finally:
        for team in started:
            team.__exit__()
    return turns


# What follows from it


def median(turns: Sequence[Mapping[str, Any]], name: str) -> float:
    """Of a time over the rounds."""
    return statistics.median(turn[name] for turn in turns)


def points_of(turns: Mapping[int, Sequence[Mapping[str, Any]]], most: float = math.inf) -> list[Point]:
    """The timed all-reduces of up to so many workers."""
    return [
        Point(size, count, statistics.median(turn["all_reduce"][size] for turn in turns[count]))
        for count in turns
        if 1 < count <= most
        for size in turns[count][0]["all_reduce"]
    ]


def main(_: list[str]) -> None:
    """Prints the tables, or works for the process that does."""
    if _WORKER.value:
        work()
        return
    counts, batch, cores = [int(each) for each in _COUNTS.value], _BATCH.value, len(os.sched_getaffinity(0))
    require(
        counts == sorted(set(counts)) and counts[0] == 1 and len(counts) > 1,
        f"--counts needs 1 and others in rising order, received {','.join(_COUNTS.value)}",
    )
    require(
        all(batch % count == 0 for count in counts),
        f"--global_batch={batch} must be a multiple of each of --counts={','.join(_COUNTS.value)}",
    )
    turns = measure(counts)
    console = rich.console.Console()
    compute, share = median(turns[1], "step"), median(turns[1], "share")
    # Two sizes of batches show what does not get shorter with them; nothing does where small ones are faster an image.
    fraction = _share() / batch
    fixed = min(compute, max(0.0, (share - fraction * compute) / (1 - fraction)))
    sizes = turns[counts[-1]][0]["sizes"]
    network, errors = fit_network(points_of(turns))

    table = rich.table.Table(
        "workers", "step, ms", "times as fast", "all-reduces alone, ms", "share of the step", title="Measured"
    )
    for count in counts:
        ratio = statistics.median(one["step"] / own["step"] for one, own in zip(turns[1], turns[count], strict=True))
        alone = statistics.median(turn["communication"] / turn["step"] for turn in turns[count])
        table.add_row(
            str(count),
            f"{1e3 * median(turns[count], 'step'):.1f}",
            f"{ratio:.2f}",
            f"{1e3 * median(turns[count], 'communication'):.1f}",
            f"{alone:.1%}",
        )
    console.print(table)
    console.print(
        f"DS-CNN of {_WIDTH.value} filters, {batch} images of 32 x 32 x 3 a step, {cores} cores"
        + (f", which {counts[-1]} workers share" if counts[-1] > cores else "")
        + f". A step of several workers has {len(sizes)} all-reduces of {sum(sizes)} bytes together, one of them, "
        f"{max(sizes)} bytes, of all gradients, others of BatchNormalization's statistics. "
        f"One worker takes {1e3 * share:.1f} ms for {_share()} images: {1e3 * fixed:.1f} ms of a step do "
        "not get shorter with the batch."
    )

    table = rich.table.Table("workers", "bytes", "all-reduce, ms", "model, ms", "error", title="The network")
    for point, error in zip(points_of(turns), errors, strict=True):
        modelled = ring_all_reduce(point.size, point.workers, network)
        table.add_row(
            str(point.workers),
            str(point.size),
            f"{1e3 * point.seconds:.2f}",
            f"{1e3 * modelled:.2f}",
            f"{100 * error:+.0f} %",
        )
    console.print(table)
    console.print(f"latency {1e6 * network.latency:.0f} µs, bandwidth {network.bandwidth / 1e6:.0f} MB/s")

    def step_of(count: int, fitted: Network) -> float:
        spent = sum(ring_all_reduce(size, count, fitted) for size in sizes) if count > 1 else 0.0
        return step_time(compute, count, spent, cores, fixed)

    table = rich.table.Table(
        "workers", "step, ms", "model, ms", "error", "from fewer workers, ms", "error", title="The model of a step"
    )
    for before, count in zip([0, *counts], counts, strict=False):
        measured = median(turns[count], "step")
        foretold = ["", ""]
        if before > 1:
            # Of the network too nothing is known but what fewer workers measured.
            value = step_of(count, fit_network(points_of(turns, before))[0])
            foretold = [f"{1e3 * value:.1f}", f"{100 * (value / measured - 1):+.0f} %"]
        value = step_of(count, network)
        table.add_row(
            str(count),
            f"{1e3 * measured:.1f}",
            f"{1e3 * value:.1f}",
            f"{100 * (value / measured - 1):+.0f} %" if count > 1 else "measured",
            *foretold,
        )
    console.print(table)

    between = Network(_LATENCY.value or network.latency, _BANDWIDTH.value or network.bandwidth)
    table = rich.table.Table(
        "workers", "all-reduce", "step, ms", "efficiency", "share of communication", title="Projection"
    )
    for count in PROJECTED:
        ways = {
            "ring": sum(ring_all_reduce(size, count, between if count > PER_HOST else network) for size in sizes),
            f"by hosts of {PER_HOST}": sum(
                hierarchical_all_reduce(size, count, PER_HOST, network, between) for size in sizes
            ),
        }
        for way, spent in ways.items():
            value = step_time(compute, count, spent, None, fixed)
            table.add_row(
                str(count), way, f"{1e3 * value:.1f}", f"{compute / count / value:.1%}", f"{spent / value:.1%}"
            )
    console.print(table)
    console.print(
        f"A core for each worker; inside a host the network above, between hosts latency "
        f"{1e6 * between.latency:.0f} µs and bandwidth {between.bandwidth / 1e6:.0f} MB/s. "
        f"Medians of {ROUNDS.value} rounds of {STEPS.value} steps, "
        f"{describe_environment()['cpu']}"
    )


if __name__ == "__main__":
    app.run(main)
