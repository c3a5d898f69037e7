"""`meet`: all workers of a training find each other, and learn whether they run the same, before TensorFlow starts.

Each worker listens at its own address for a moment and calls every other one, so that both directions are known to
work. A caller says a line with its index, all addresses and its text; the called one answers with its own. A worker
that has called, and was called by, all others tells each of them that it is ready, and leaves when all are ready.
So nobody leaves while another one still needs it. Whoever calls and does not speak like this is ignored.
"""

import asyncio
import contextlib
import dataclasses
import errno
import json
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

from tfopt.workers.addresses import Workers, split_address
from tfopt.workers.link import Link

_log = logging.getLogger(__name__)
_MAGIC = b"tfopt-meet/1 "
_READY = _MAGIC + b"ready\n"
_LONGEST_LINE = 2**20
# For one connection and one line; a worker that is busy importing answers later calls.
_SECONDS_TO_ANSWER = 5.0
_SECONDS_TO_REFUSE = 2.0


def check_port(workers: Workers) -> None:
    """Raises an OSError where this worker cannot listen at its own port."""
    _listen(workers).close()


def meet(workers: Workers, text: str, seconds: float = 300.0) -> tuple[str, ...]:
    """Waits for all other workers and exchanges a text with them; the own port is free again afterwards.

    Args:
      workers: all of them, and which one this is.
      text: for the others, below a megabyte: what they must have in common.
      seconds: how long to wait.

    Returns:
      The texts of all workers, in order of their indices.

    Raises:
      OSError: the own port cannot be used.
      TimeoutError: names the workers that did not come, or that cannot be reached, with the reason.
      ValueError: a worker has another list of addresses, or an index that is not its own.

    >>> meet(Workers(("localhost:47651",), 0), "alone")
    ('alone',)
    """
    link = join(workers, text, seconds)
    link.close()
    return link.texts


def join(workers: Workers, text: str, seconds: float = 300.0) -> Link:
    """The same as `meet`, with the connections kept: `Link.watched` tells when another worker ends."""
    with _listen(workers) as listener:
        return asyncio.run(_Meeting(workers, text).hold(listener, seconds))


def check_same(workers: Workers, facts: Sequence[Mapping[str, Any]]) -> None:
    """Raises a ValueError that names each fact in which a worker differs from the first one.

    >>> check_same(Workers(("a:1", "b:2"), 0), [{"keras": "3.15.1"}, {"keras": "3.14.0"}])
    Traceback (most recent call last):
    ValueError: the workers do not run the same: keras is '3.15.1' on worker 0 (a:1) and '3.14.0' on worker 1 (b:2). ...
    """
    first, found = facts[0], []
    for index, others in enumerate(facts):
        for key in [*first, *(key for key in others if key not in first)]:
            one, other = first.get(key, "missing"), others.get(key, "missing")
            if one != other:
                found.append(f"{key} is {one!r} on {workers.name(0)} and {other!r} on {workers.name(index)}")
    if found:
        raise ValueError(
            f"the workers do not run the same: {'; '.join(found)}. Start all of them with the same recipe, flags "
            "and versions"
        )


@dataclasses.dataclass(frozen=True)
class _Hello:
    """What a worker says first."""

    index: int
    addresses: tuple[str, ...]
    text: str
    # Another one after each start.
    token: str

    def line(self) -> bytes:
        return _MAGIC + json.dumps(dataclasses.asdict(self)).encode() + b"\n"


async def _read_hello(reader: asyncio.StreamReader) -> _Hello | None:
    """What the other side says first; None where that is nothing that a worker says."""
    try:
        async with asyncio.timeout(_SECONDS_TO_ANSWER):
            line = await _read_line(reader)
        if not line.startswith(_MAGIC):
            return None
        hello = _Hello(**json.loads(line[len(_MAGIC) :]))
    except (ValueError, TypeError, TimeoutError, RecursionError):
        return None
    texts = [hello.text, hello.token, *hello.addresses] if isinstance(hello.addresses, list) else [None]
    if type(hello.index) is not int or not all(isinstance(each, str) for each in texts):
        return None
    return dataclasses.replace(hello, addresses=tuple(hello.addresses))


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """A whole line; nothing where the connection ends or breaks, or where the line is too long."""
    try:
        line = await reader.readline()
    except (OSError, ValueError):
        return b""
    return line if line.endswith(b"\n") else b""


class _Meeting:
    """What one worker knows of the others so far."""

    def __init__(self, workers: Workers, text: str) -> None:
        self.workers = workers
        self.hello = _Hello(workers.index, workers.addresses, text, secrets.token_hex(8))
        if len(self.hello.line()) > _LONGEST_LINE:
            raise ValueError(
                f"the text for the other workers must be below a megabyte, received {len(text)} characters"
            )
        self.others = [index for index in range(len(workers.addresses)) if index != workers.index]
        # By index: who called and who answered, with what it said; who is ready; who was told that this one is.
        self.called: dict[int, _Hello] = {}
        self.answered: dict[int, _Hello] = {}
        self.ready: set[int] = set()
        self.told: set[int] = set()
        # The same of the first two, also where the connection was lost again.
        self.ever_called: set[int] = set()
        self.ever_answered: set[int] = set()
        # The connections behind these: calls from here, and from there.
        self.calls: dict[int, asyncio.StreamWriter] = {}
        self.answers: dict[int, asyncio.StreamWriter] = {}
        # Why the last call did not reach a worker.
        self.problems: dict[int, str] = {}
        self.complete, self.over = asyncio.Event(), asyncio.Event()
        self.refusal: ValueError | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    async def hold(self, listener: socket.socket, seconds: float) -> Link:
        self._update()
        server = await asyncio.start_server(self._take, sock=listener, limit=_LONGEST_LINE)
        self.tasks |= {asyncio.create_task(self._call(index)) for index in self.others}
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
            if self.refusal is not None:
                # So that others come by and see the reason too.
                await asyncio.sleep(_SECONDS_TO_REFUSE)
                raise self.refusal
            said = {**self.called, self.workers.index: self.hello}
            texts = tuple(said[index].text for index in range(len(self.workers.addresses)))
            return Link(self.workers, texts, _copies(self.calls), _copies(self.answers))
        except TimeoutError:
            raise TimeoutError(self._absence(seconds)) from None
        finally:
            server.close()
            # Connections that are just being taken become tasks.
            await asyncio.sleep(0.01)
            tasks = list(self.tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _update(self) -> None:
        """To be called after every change."""
        others = set(self.others)
        self.ever_called |= set(self.called)
        self.ever_answered |= set(self.answered)
        met = all(index in self.called and index in self.answered and not self._stale(index) for index in others)
        (self.complete.set if met else self.complete.clear)()
        if self.refusal is not None or (met and self.ready >= others and self.told >= others):
            self.over.set()

    def _stale(self, index: int) -> bool:
        """Whether a worker was started anew since it answered."""
        return index in self.called and self.called[index].token != self.answered[index].token

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of its own, since asyncio reports those of its servers as failed when they are cancelled.
        task = asyncio.create_task(self._answer(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        # Also where it is cancelled before it begins.
        task.add_done_callback(lambda _: writer.close())

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One call from elsewhere."""
        try:
            async with _closing(writer):
                await self._listen_to(reader, writer)
        except OSError as error:
            # Whoever it was calls again.
            _log.debug("a call broke off: %s", error)

    async def _listen_to(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await _read_hello(reader)
        if hello is None:
            return
        # Before anything is refused, so that the other one sees the reason too.
        writer.write(self.hello.line())
        await writer.drain()
        if not self._accept(hello, f"a worker at {_host(writer)}"):
            return
        # One that calls anew was started anew.
        self.called[hello.index], self.answers[hello.index] = hello, writer
        self.ready.discard(hello.index)
        self._update()
        is_ready = await _read_line(reader) == _READY
        if self.called.get(hello.index) is not hello:
            return
        if is_ready:
            self.ready.add(hello.index)
            self._update()
            # Stays open: for the other one, its end would be that of this worker.
            await asyncio.Event().wait()
        else:
            del self.called[hello.index]
            self._update()

    async def _call(self, index: int) -> None:
        """Calls a worker until it answers, tells it when this one is ready, and calls again where it was lost."""
        host, port = split_address(self.workers.addresses[index])
        pause = 0.05
        while True:
            try:
                async with asyncio.timeout(_SECONDS_TO_ANSWER):
                    reader, writer = await asyncio.open_connection(host, port, limit=_LONGEST_LINE)
                async with _closing(writer):
                    await self._talk(index, reader, writer)
            except TimeoutError:
                self.problems[index] = f"no answer from its host in {_SECONDS_TO_ANSWER:.0f} s"
            except OSError as error:
                # Those of names and of several addresses have other numbers, or none.
                number = error.errno or 0
                self.problems[index] = os.strerror(number) if number > 0 else error.strerror or str(error)
            self.answered.pop(index, None)
            self.told.discard(index)
            self._update()
            await asyncio.sleep(pause)
            pause = min(1.0, 1.5 * pause)

    async def _talk(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.hello.line())
        hello = await _read_hello(reader)
        if hello is None:
            self.problems[index] = "another program answers there, or the worker is busy"
            return
        if not self._accept(hello, f"the worker at {self.workers.addresses[index]}", index):
            return
        # What comes behind the meeting is not for asyncio. Streams have one transport for both directions.
        cast(asyncio.Transport, writer.transport).pause_reading()
        self.answered[index], self.calls[index] = hello, writer
        self._update()
        while not self._stale(index):
            if self.complete.is_set() and index not in self.told:
                writer.write(_READY)
                await writer.drain()
                self.told.add(index)
                self._update()
            await asyncio.sleep(0.02)
        self.problems[index] = "it ended"

    def _accept(self, hello: _Hello, who: str, index: int | None = None) -> bool:
        """Whether a worker says what it should; what it says otherwise is kept as the reason to end."""
        own, problem = self.workers, None
        if hello.addresses != own.addresses:
            problem = (
                f"{who} has other workers ({', '.join(hello.addresses)}) than this one ({', '.join(own.addresses)}): "
                "give all the same list, in the same order"
            )
        elif hello.index == own.index or (index is not None and hello.index != index):
            problem = f"{who} says that it is worker {hello.index}, "
            problem += "as this one" if index is None or hello.index == own.index else f"and should be worker {index}"
            problem += ": give each its own --worker_index"
        elif hello.index not in self.others:
            problem = f"{who} says that it is worker {hello.index}; there are {len(own.addresses)}"
        if problem is not None and self.refusal is None:
            self.refusal = ValueError(problem)
            self._update()
        return problem is None

    def _absence(self, seconds: float) -> str:
        """Who did not come, and why."""
        absent, unreachable, deaf, waiting = [], [], [], []
        for index in self.others:
            reason = f"{self.workers.name(index)}: {self.problems.get(index, 'no answer')}"
            if index not in self.ever_called | self.ever_answered:
                absent.append(reason)
            elif index not in self.ever_answered:
                unreachable.append(reason)
            elif index not in self.ever_called:
                deaf.append(self.workers.name(index))
            elif index not in self.ready:
                waiting.append(self.workers.name(index))
        said = [f"{self.workers.name(self.workers.index)} waited {seconds:g} s for the others"]
        if absent:
            said.append(f"these did not come: {', '.join(absent)}. Start them with the same command")
        if unreachable:
            said.append(
                f"these called and cannot be reached: {', '.join(unreachable)}. Is the address right, and does no "
                "firewall close the port?"
            )
        if deaf:
            said.append(
                f"these can be reached and did not call: {', '.join(deaf)}. Can they reach {self.workers.address}?"
            )
        if waiting and len(said) == 1:
            said.append(f"these came, and wait for others or have ended: {', '.join(waiting)}. They say why")
        return "; ".join(said)


def _listen(workers: Workers) -> socket.socket:
    """Listens at this worker's port, on all networks of this host, as TensorFlow will."""
    port = split_address(workers.address)[1]
    try:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        # Once more by the older protocol alone: a host may have switched the newer one off.
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        cause = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise OSError(
            error.errno,
            f"{workers.name(workers.index)} cannot use its port {port} ({cause}): end the other process (ss -ltnp "
            f"shows it), or give this worker another port",
        ) from error


def _copies(writers: Mapping[int, asyncio.StreamWriter]) -> dict[int, socket.socket]:
    """Connections that stay open when asyncio closes its own; for one that broke, one that ends at once."""
    sockets = {index: writer.get_extra_info("socket") for index, writer in writers.items()}
    return {index: each.dup() if each.fileno() >= 0 else _ended() for index, each in sockets.items()}


def _ended() -> socket.socket:
    here, there = socket.socketpair()
    there.close()
    return here


def _host(writer: asyncio.StreamWriter) -> str:
    return str((writer.get_extra_info("peername") or ["an unknown host"])[0])


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Closes a connection at the end; what was written still goes out."""
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
