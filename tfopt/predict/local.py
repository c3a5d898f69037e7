"""Shards in processes on this machine; one that dies is replaced, and none outlives the run."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from absl import logging

from tfopt.predict.folder import Shard
from tfopt.predict.shards import Job, Predictor

# How often a shard may end its process before it counts as what ends it.
_ATTEMPTS = 3
_SECONDS_TO_END = 5.0
# Errors that every process knows, the more special ones first.
PORTABLE: tuple[type[Exception], ...] = (FileNotFoundError, OSError, ValueError, RuntimeError)
_CONTEXT = multiprocessing.get_context("forkserver")


def run_local(
    job: Job, numbers: Sequence[int], workers: int, progress: Callable[[int], Any], done: Callable[[Shard], Any]
) -> None:
    """Does shards, each in whichever process is free.

    Args:
      job: what they have in common.
      numbers: of the shards.
      workers: processes, at least 1.
      progress: is told how many rows were predicted since the last time; negative where they will be done again.
      done: is told of each finished shard.

    Raises:
      RuntimeError: a shard has ended three processes.
      Whatever a shard raises.
    """
    # TensorFlow is imported once, by a server that does not start its runtime, and from which workers are forked.
    _CONTEXT.set_forkserver_preload(["tfopt.predict.shards"])
    left, attempts = list(reversed(numbers)), dict.fromkeys(numbers, 0)
    with contextlib.ExitStack() as stack:
        busy: dict[Connection, _Worker] = {}

        def start(worker: _Worker) -> None:
            if left:
                worker.begin(left.pop())
                busy[worker.connection] = worker

        for _ in range(min(workers, len(left))):
            start(stack.enter_context(contextlib.closing(_Worker(job))))
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                answer = worker.answer()
                if isinstance(answer, int):
                    worker.rows += answer
                    progress(answer)
                    continue
                del busy[connection]
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(answer, Shard):
                    done(answer)
                else:
                    number = worker.number
                    attempts[number] += 1
                    if attempts[number] == _ATTEMPTS:
                        raise RuntimeError(
                            f"the process of shard {number} has ended {_ATTEMPTS} times, the last time with exit code "
                            f"{answer[0]}: is there too little memory for {workers} workers? Take fewer, or smaller "
                            "shards in a new folder"
                        )
                    logging.warning("a worker has ended with exit code %s: shard %d is done again", answer[0], number)
                    progress(-worker.rows)
                    left.append(number)
                start(worker)


class _Worker:
    """A process that does one shard after another."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.number, self.rows = -1, 0
        self._start()

    def _start(self) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._job))
        self._process.start()
        # Only so does the end of the process end the pipe.
        theirs.close()

    def begin(self, number: int) -> None:
        """Hands it a shard; starts it again where it has died."""
        if self.connection.closed:
            self._start()
        self.number, self.rows = number, 0
        # Where it has died meanwhile, `answer` will say so.
        with contextlib.suppress(ConnectionError):
            self.connection.send(number)

    def answer(self) -> "int | Shard | Exception | tuple[int | None]":
        """Rows done, the finished shard, its error, or the exit code of a process that has died."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.connection.close()
            self._process.join()
            return (self._process.exitcode,)

    def close(self) -> None:
        """Ends the process."""
        self.connection.close()
        self._process.terminate()
        self._process.join(_SECONDS_TO_END)
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, job: Job) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    predictor: Predictor | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            number = connection.recv()
            try:
                predictor = predictor or Predictor(job)
                answer: Shard | Exception = predictor.shard(number, connection.send)
            except Exception as error:  # noqa: BLE001 - the parent raises it
                answer = portable(error, number)
            connection.send(answer)


def portable(error: Exception, number: int) -> Exception:
    """The error as one that travels: of a type that every process knows."""
    made = next((kind for kind in PORTABLE if isinstance(error, kind)), RuntimeError)(str(error))
    for note in (*getattr(error, "__notes__", ()), f"in shard {number}"):
        made.add_note(note)
    return made


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
