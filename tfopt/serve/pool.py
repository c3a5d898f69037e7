"""The workers of one model, and the requests that wait for them."""

import asyncio
import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

import numpy as np

from tfopt.serve.description import Description
from tfopt.serve.replica import Answer, Replica, ReplicaLost
from tfopt.serve.settings import Batching

logger = logging.getLogger("tfopt.serve")
# A worker of a Keras model imports TensorFlow first.
_SECONDS_TO_START = 300.0
# A worker that dies sooner than that may do so again.
_SECONDS_TO_TRUST = 60.0


class Refused(Exception):
    """The model cannot compute this request; the message says why."""


@dataclasses.dataclass(eq=False)
class _Request:
    inputs: Mapping[str, np.ndarray]
    raw: bool
    rows: int
    answer: asyncio.Future[dict[str, np.ndarray]]
    asked: float

    def key(self) -> tuple:
        """Equal for requests that may share a run."""
        return self.raw, *((name, each.dtype.str, each.shape[1:]) for name, each in sorted(self.inputs.items()))


class Pool:
    """Worker processes of one model; one that dies is started again.

    Requests wait in one queue. A worker that is free takes the oldest one and, where the model gives the same bits in a
    batch, others with it; there it also waits a moment for others to come. Workers whose requests run one by one have
    the next one at hand already.

    Args:
      path: of the model; nobody else may change it.
      replicas: workers, at least 1.
      threads: of each interpreter.
      batching: how many requests share a run.
      timeout: seconds after which a worker that does not answer is killed.
      observe: called with the examples of each run.
    """

    def __init__(
        self,
        path: str,
        replicas: int,
        threads: int,
        batching: Batching,
        timeout: float,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.path, self.replicas, self.threads, self.batching = path, replicas, threads, batching
        self.timeout, self._observe = timeout, observe
        self.alive: list[Replica] = []
        self._queue: collections.deque[_Request] = collections.deque()
        self._keepers: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._pending = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.restarts = 0
        self.shared: int | None = None

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue)

    async def start(self) -> Description:
        """Starts all workers; errors as of `Replica.start`."""
        first = self._replica()
        self.description = await first.start(_SECONDS_TO_START)
        # The others have no need to measure again what may share a run.
        self.shared = first.shared
        others = [self._replica() for _ in range(self.replicas - 1)]
        self._join(first)
        for each in others:
            try:
                await each.start(_SECONDS_TO_START)
            except (ValueError, OSError, ReplicaLost):
                await self.close()
                raise
            self._join(each)
        self._keepers = [asyncio.create_task(self._keep(each)) for each in list(self.alive)]
        self._keepers.append(asyncio.create_task(self._watch()))
        return self.description

    async def predict(self, inputs: Mapping[str, np.ndarray], raw: bool) -> dict[str, np.ndarray]:
        """The model's outputs for one request.

        Raises:
          Refused: the model cannot compute it.
          ReplicaLost: the worker died meanwhile, or took too long.
        """
        loop = asyncio.get_running_loop()
        rows = len(next(iter(inputs.values()))) if self.description.batch else 1
        request = _Request(inputs, raw, rows, loop.create_future(), time.monotonic())
        self._pending += 1
        self._idle.clear()
        try:
            self._queue.append(request)
            self._dispatch()
            return await request.answer
        finally:
            self._pending -= 1
            if not self._pending:
                self._idle.set()

    def _dispatch(self) -> None:
        assert self.shared is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            if self._queue[0].answer.done():
                self._queue.popleft()
                continue
            # One in hand where each runs alone; where they can share a run, the more wait the better.
            depth = 2 if self.shared == 1 else 1
            free = [each for each in self.alive if each.waiting < depth and not each.ended.is_set()]
            if not free:
                return
            replica = min(free, key=lambda each: (each.waiting, each.since if each.waiting else 0.0))
            idle = sum(not each.waiting for each in free)
            if (pause := self._pause()) > 0:
                self._timer = asyncio.get_running_loop().call_later(pause, self._dispatch)
                return
            self._send(replica, self._take(max(idle, 1)))

    def _pause(self) -> float:
        """Seconds that the oldest request still waits for others to share its run."""
        assert self.shared is not None
        # Where nobody else asks, there is nothing to wait for.
        is_alone = self._pending == len(self._queue) == 1
        if self.shared == 1 or is_alone or sum(each.rows for each in self._queue) >= self.shared:
            return 0.0
        return self._queue[0].asked + self.batching.wait_ms / 1000 - time.monotonic()

    def _take(self, takers: int) -> list[_Request]:
        """The oldest request, and those behind it that may share its run; idle workers share what waits."""
        assert self.shared is not None
        taken = [self._queue.popleft()]
        if self.shared > 1:
            total = taken[0].rows + sum(each.rows for each in self._queue)
            most, rows, key = min(self.shared, -(-total // takers)), taken[0].rows, taken[0].key()
            while self._queue and rows + self._queue[0].rows <= most and self._queue[0].key() == key:
                taken.append(self._queue.popleft())
                rows += taken[-1].rows
        return taken

    def _send(self, replica: Replica, batch: list[_Request]) -> None:
        self._observe(sum(each.rows for each in batch))
        asked = replica.ask([each.inputs for each in batch], batch[0].raw)
        asked.add_done_callback(lambda future: self._receive(batch, future))

    def _receive(self, batch: list[_Request], future: asyncio.Future[list[Answer]]) -> None:
        lost = future.exception()
        answers: list[Answer] = [""] * len(batch) if lost else future.result()
        for request, answer in zip(batch, answers, strict=True):
            if request.answer.done():
                continue
            if lost is not None:
                request.answer.set_exception(lost)
            elif isinstance(answer, str):
                request.answer.set_exception(Refused(answer))
            else:
                request.answer.set_result(answer)
        self._dispatch()

    def _replica(self) -> Replica:
        return Replica(self.path, self.threads, self.batching.most, self.shared)

    def _join(self, replica: Replica) -> None:
        self.alive.append(replica)
        self._dispatch()

    async def _keep(self, replica: Replica) -> None:
        """Replaces a worker that dies; one that dies again and again, less and less often."""
        deaths = 0
        while True:
            await replica.ended.wait()
            self.alive.remove(replica)
            age = time.monotonic() - replica.started
            deaths = deaths + 1 if age < _SECONDS_TO_TRUST else 1
            self.restarts += 1
            logger.warning("a worker of %s ended with status %s; it is replaced", self.path, replica.process.returncode)
            while True:
                await asyncio.sleep(_pause_after(deaths))
                replica = self._replica()
                try:
                    await replica.start(_SECONDS_TO_START)
                    break
                # OSError: no process or descriptor is left just now.
                except (ValueError, OSError, ReplicaLost) as error:
                    deaths += 1
                    logger.warning("a worker cannot be started: %s; it is tried again", error)
            self._join(replica)

    async def _watch(self) -> None:
        """Kills workers that do not answer."""
        while True:
            await asyncio.sleep(min(1.0, self.timeout / 4))
            for replica in list(self.alive):
                if replica.waiting and time.monotonic() - replica.since > self.timeout:
                    logger.warning("a worker of %s has not answered for %g s and is killed", self.path, self.timeout)
                    replica.kill()

    async def drain(self, seconds: float) -> None:
        """Waits until all requests are answered, or `seconds` are over."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            logger.warning("%d requests of %s were not answered within %g s", self._pending, self.path, seconds)

    async def close(self) -> None:
        """Ends the workers."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(each.close() for each in self.alive))


def _pause_after(deaths: int) -> float:
    """Seconds before the next start, after so many deaths in a row soon after a start.

    >>> [_pause_after(deaths) for deaths in (0, 1, 2, 3, 9)]
    [0.0, 0.0, 1.0, 2.0, 30.0]
    """
    return 0.0 if deaths < 2 else min(30.0, 2.0 ** (deaths - 2))
