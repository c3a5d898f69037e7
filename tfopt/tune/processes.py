"""Trials in processes of their own; none of them outlives the one that started it."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import pickle
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from tfopt.config import require
from tfopt.train.strategies import is_one_device
from tfopt.tune.trial import Ended, Job, run_trial

# Between SIGTERM, at which a training saves, and SIGKILL.
_SECONDS_TO_END = 20.0
_CONTEXT = multiprocessing.get_context("spawn")


def check_job(job: Job) -> None:
    """Raises where a job cannot be handed to another process.

    Raises:
      ValueError: it cannot, with the reason.
    """
    require(is_one_device(job.work.strategy), "with jobs above 1 each trial trains on one device: leave strategy out")
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            "this search cannot be handed to other processes: take jobs=1, or let stages load data and model "
            f"(LoadTFDS, LoadData, LoadModel), in a recipe that is a function of a module. Python said: {error}"
        ) from error


def run_trials(
    job: Job,
    jobs: int,
    take: Callable[[], tuple[int, Mapping[str, Any]] | None],
    look: Callable[[int, int, float], bool],
    record: Callable[[int, Ended], None],
) -> None:
    """Runs trials until there are none left to take.

    Args:
      job: what they have in common.
      jobs: how many at once; 1: in this process.
      take: gives number and values of the next one, or None.
      look: given number, step and value, says whether a trial should end there.
      record: is told how each ended.
    """
    if jobs == 1:
        while (next_one := take()) is not None:
            number, values = next_one
            record(number, run_trial(job, number, values, functools.partial(look, number)))
        return
    with contextlib.ExitStack() as stack:
        busy: dict[Connection, _Worker] = {}
        for index in range(jobs):
            if (next_one := take()) is not None:
                worker = stack.enter_context(contextlib.closing(_Worker(job, index)))
                worker.begin(*next_one)
                busy[worker.connection] = worker
        while busy:
            ready = wait(list(busy))
            for connection in [each for each in busy if each in ready]:
                worker = busy.pop(connection)
                answer = worker.answer()
                if isinstance(answer, _Question):
                    worker.tell(look(worker.number, answer.step, answer.value))
                else:
                    record(worker.number, answer)
                    next_one = take()
                    if next_one is None:
                        continue
                    worker.begin(*next_one)
                busy[worker.connection] = worker


@dataclasses.dataclass(frozen=True)
class _Question:
    """Whether to go on after this."""

    step: int
    value: float


class _Worker:
    """A process that does one trial after another."""

    def __init__(self, job: Job, index: int) -> None:
        self._job, self._log = job, job.workdir / f"process-{index}.log"
        self.number = -1
        self._start()

    def _start(self) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._job, self._log))
        self._process.start()
        # Only so does the end of the process end the pipe.
        theirs.close()

    def begin(self, number: int, values: Mapping[str, Any]) -> None:
        """Hands it a trial; starts it again where it has died."""
        if self.connection.closed:
            self._start()
        self.number = number
        self.tell((number, values))

    def tell(self, message: Any) -> None:
        """Sends something; where it has died meanwhile, `answer` will say so."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(message)

    def answer(self) -> "_Question | Ended":
        """What it says, which is how the trial ended where the process has died."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.connection.close()
            self._process.join()
            return Ended("failed", reason=f"its process ended with exit code {self._process.exitcode}: {self._log}")

    def close(self) -> None:
        """Ends the process."""
        self.connection.close()
        self._process.terminate()
        self._process.join(_SECONDS_TO_END)
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, job: Job, log: pathlib.Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    def look(step: int, value: float) -> bool:
        connection.send(_Question(step, value))
        return connection.recv()

    with contextlib.suppress(EOFError):
        while True:
            number, values = connection.recv()
            connection.send(run_trial(job, number, values, look))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
