"""Processes of a tf.data service: a dispatcher and workers, on one host or several."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO

import tensorflow as tf
from absl import logging

from tfopt.config import require

WORKER = pathlib.Path(__file__).with_name("service_worker.py")
# Import of TensorFlow on a busy machine.
_SECONDS_TO_START = 120


@contextlib.contextmanager
def local_service(
    workers: int = 2,
    port: int = 0,
    folder: str | os.PathLike[str] | None = None,
    host: str = "localhost",
    worker_port: int = 0,
) -> Iterator[str]:
    """Runs a tf.data service on this machine, for as long as the block lasts.

    A worker that dies is replaced at its port, and trainings go on. All processes end with the block, and with this
    process, however it ends.

    Args:
      workers: processes, at least 1.
      port: of the dispatcher, which runs in this process; 0: one that is free.
      folder: where the dispatcher keeps a journal: started again at the same port, it goes on with its trainings.
      host: the name by which trainings reach this machine.
      worker_port: of the first worker, the others have the next ones; 0: any that are free. A service that is to be
        started again in mid-training must have the same ones.

    Yields:
      The address for `Pipeline(service=...)`.

    Raises:
      RuntimeError: a worker does not start.

    Example::

        with local_service(workers=4) as address:
            pipeline = Pipeline(deterministic=False, service=address)
            served = dataclasses.replace(data, pipeline=pipeline)
            model.fit(served.train, epochs=10, shuffle=False)
    """
    config = tf.data.experimental.service.DispatcherConfig(
        port=port, work_dir=None if folder is None else os.fspath(folder), fault_tolerant_mode=folder is not None
    )
    dispatcher = tf.data.experimental.service.DispatchServer(config)
    try:
        address = f"{host}:{dispatcher.target.rpartition(':')[2]}"
        with worker_processes(address, workers, host, worker_port):
            yield f"grpc://{address}"
    finally:
        dispatcher.stop()


@contextlib.contextmanager
def worker_processes(
    dispatcher: str, workers: int, host: str = "localhost", worker_port: int = 0
) -> Iterator[list["_Worker"]]:
    """Runs workers of a service, for as long as the block lasts; one that dies is replaced.

    Args:
      dispatcher: its address, "host:port".
      workers: processes, at least 1.
      host: the name by which trainings reach this machine.
      worker_port: of the first worker, the others have the next ones; 0: any that are free.

    Yields:
      The workers; `process.pid` tells which processes they are.

    Raises:
      RuntimeError: a worker does not start.
    """
    require(workers >= 1, f"workers must be at least 1, received {workers}")
    ports = [worker_port + number if worker_port else _free_port() for number in range(workers)]
    started = [_Worker(dispatcher, host, port) for port in ports]
    over = threading.Event()
    guard = threading.Thread(target=_replace_the_dead, args=(started, over), daemon=True)
    try:
        for each in started:
            each.wait_until_ready()
        guard.start()
        yield started
    finally:
        over.set()
        if guard.ident is not None:
            guard.join()
        for each in started:
            # They end with their input; all at once.
            each.input.close()
        for each in started:
            each.end()


class _Worker:
    """One worker process, always at the same port."""

    def __init__(self, dispatcher: str, host: str, port: int) -> None:
        self.port, self.command = port, [sys.executable, str(WORKER), dispatcher, host, str(port)]
        self.start()

    def start(self) -> None:
        # A file, since nobody reads along, and a pipe would be full one day.
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self.started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input: IO[bytes] = self.process.stdin
        self.output: IO[bytes] = self.process.stdout

    def wait_until_ready(self) -> None:
        """Waits for the line that a worker prints when it is known to the dispatcher."""
        timer = threading.Timer(_SECONDS_TO_START, self.process.kill)
        timer.start()
        line = self.output.readline()
        timer.cancel()
        if not line:
            self.process.wait()
            raise RuntimeError(f"a worker of the tf.data service did not start: {self.said()}")

    def said(self) -> str:
        """The end of what it wrote to its standard error."""
        self.errors.seek(0)
        return self.errors.read()[-1000:].decode(errors="replace")

    def end(self) -> None:
        self.input.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()
        self.errors.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _replace_the_dead(workers: list[_Worker], over: threading.Event) -> None:
    """One that dies again and again as it starts is started less and less often; the log says each time why."""
    deaths = dict.fromkeys(workers, 0)
    while not over.wait(0.2):
        for worker in workers:
            status, age = worker.process.poll(), time.monotonic() - worker.started
            if status is None or age < _pause(deaths[worker]):
                continue
            deaths[worker] = deaths[worker] + 1 if age < _SECONDS_TO_START else 1
            logging.warning(
                "the worker at port %d of the tf.data service ended with status %d, and is replaced: %s",
                worker.port,
                status,
                worker.said(),
            )
            worker.end()
            # At the same port: only so do trainings learn that the other one will not answer.
            worker.start()


def _pause(deaths: int) -> float:
    """Seconds from one start to the next, after so many deaths soon after a start.

    >>> [_pause(deaths) for deaths in (0, 2, 3, 4, 9)]
    [0.0, 0.0, 8.0, 16.0, 60.0]
    """
    return 0.0 if deaths < 3 else min(60.0, 2.0**deaths)
