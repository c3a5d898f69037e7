"""One worker process, seen from the server."""

import asyncio
import collections
import contextlib
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt.serve.description import Description
from tfopt.serve.wire import PREFIX, Arrays, pack, unpack

WORKER = pathlib.Path(__file__).with_name("worker.py")
# Of a socket's buffer; arrays are larger than what a system gives by default.
_BUFFER = 1 << 20

Answer = dict[str, np.ndarray] | str


class ReplicaLost(Exception):
    """The worker ended before it answered."""


class Replica:
    """A worker process with one interpreter; answers come in the order of the questions.

    Args:
      path: of the model.
      threads: of the interpreter.
      most: examples of several requests in one run, at most.
      shared: how many may share one, where that is known already; else it is measured.
    """

    def __init__(self, path: str, threads: int, most: int, shared: int | None = None) -> None:
        self._setup = {"path": path, "threads": threads, "most": most, "shared": shared}
        self._asked: collections.deque[tuple[asyncio.Future[list[Answer]], float]] = collections.deque()
        self.ended = asyncio.Event()
        self.shared = 1

    @property
    def waiting(self) -> int:
        """Questions that are not answered yet."""
        return len(self._asked)

    @property
    def since(self) -> float:
        """When the oldest of these was asked, as of `time.monotonic`."""
        return self._asked[0][1]

    async def start(self, seconds: float) -> Description:
        """Starts the process; returns what the model takes and gives.

        Raises:
          ValueError: the model cannot be loaded; the message says why.
          ReplicaLost: the process ended, or took longer than `seconds`.
        """
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        with theirs:
            # Not from the folder of the script, whose modules are not to be found by plain names.
            command = [sys.executable, "-P", str(WORKER), str(theirs.fileno())]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_BUFFER)
        self.started = time.monotonic()
        try:
            self._writer.writelines(pack(self._setup))
            head, _ = await asyncio.wait_for(_read(reader), seconds)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.kill()
            how = f"took longer than {seconds:g} s" if isinstance(error, TimeoutError) else "ended"
            raise ReplicaLost(f"a worker {how} while it loaded {self._setup['path']}") from error
        except asyncio.CancelledError:
            # Nobody waits for it any more.
            self.kill()
            raise
        if "error" in head:
            self.kill()
            raise ValueError(head["error"])
        self.shared = head["shared"]
        self._listener = asyncio.create_task(self._listen(reader))
        return Description.from_dict(head["description"])

    def ask(self, requests: Sequence[Arrays], raw: bool) -> asyncio.Future[list[Answer]]:
        """Sends requests for one run; the future gives an answer or the error of each, or raises ReplicaLost.

        Not to be called once `ended` is set.
        """
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self._asked.append((future, time.monotonic()))
        # A process that has died is noticed where its answers are read, and this one is lost there too.
        if not self._writer.is_closing():
            self._writer.writelines(pack({"raw": raw}, requests))
        return future

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                head, answers = await _read(reader)
                future, _ = self._asked.popleft()
                # Whoever asked may have given up.
                if not future.done():
                    future.set_result(
                        [
                            answer if error is None else error
                            for answer, error in zip(answers, head["errors"], strict=True)
                        ]
                    )
        except (OSError, asyncio.IncompleteReadError):
            self.kill()
            # First, so that nobody is sent here any more.
            self.ended.set()
            while self._asked:
                future, _ = self._asked.popleft()
                if not future.done():
                    future.set_exception(ReplicaLost("the worker that computed the answer ended; ask again"))

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        self._writer.close()

    async def close(self) -> None:
        """Ends the process; what it has been asked is lost."""
        self.kill()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await self._listener


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    head, content = PREFIX.unpack(await reader.readexactly(PREFIX.size))
    return unpack(await reader.readexactly(head), await reader.readexactly(content) if content else b"")
