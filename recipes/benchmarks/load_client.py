"""Sends one request again and again to a server and measures its answers; a process of its own, standard library only.

Run as a script it reads a JSON `Load` and prints what `measure` returns. With `rate` requests begin at random moments
that do not depend on the answers, and a latency counts from the moment at which its request was due: a server that
stalls is not spared the requests that would have come meanwhile. Without, each connection asks again when it has its
answer: the throughput at saturation.
"""

import asyncio
import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

# The answer to a request: status, or 0 where the connection failed.
FAILED = 0


@dataclasses.dataclass(frozen=True)
class Load:
    """What to send, and how often.

    Args:
      host: of the server.
      port: of the server.
      path: of the URL.
      body: file with the request's body.
      headers: of the request.
      seconds: how long requests begin.
      rate: requests a second; None: as many as are answered.
      connections: kept open; with `rate` further requests wait for one.
      expected: file with the body of the right answer; "": the first one with status 200 is taken for right.
      seed: of the moments.
      timeout: seconds after which a request counts as failed.
    """

    host: str
    port: int
    path: str
    body: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 10.0
    rate: float | None = None
    connections: int = 8
    expected: str = ""
    seed: int = 0
    timeout: float = 30.0


def run(load: Load) -> dict[str, Any]:
    """Does this in a process of its own; returns what `measure` does."""
    started = begin(load)
    return end(started)


def begin(load: Load) -> subprocess.Popen[str]:
    """Starts the process."""
    command = [sys.executable, "-P", str(pathlib.Path(__file__).resolve())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(dataclasses.asdict(load)))
    process.stdin.close()
    process.stdin = None
    return process


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process that was begun has measured."""
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the load generator ended with exit code {process.returncode}")
    return json.loads(output)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share, in [0, 1], does not exceed.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5), percentile([1.0, 2.0], 1.0)
    (2.0, 2.0)
    """
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


async def measure(load: Load) -> dict[str, Any]:
    """Sends the load.

    Returns:
      "answers": by status, FAILED for broken connections; "wrong": answers with status 200 and another body than the
      right one; "seconds": until the last answer; "begun" and "latencies": of each answer with status 200, in seconds
      from the start, in the order of the answers; "rate": answers with status 200 a second.
    """
    client = _Client(load)
    await client.run()
    good = len(client.latencies)
    return {
        "answers": client.answers,
        "wrong": client.wrong,
        "seconds": client.seconds,
        "rate": good / client.seconds,
        "begun": client.begun,
        "latencies": client.latencies,
    }


class _Client:
    def __init__(self, load: Load) -> None:
        self.load = load
        body = pathlib.Path(load.body).read_bytes()
        headers = {"Host": f"{load.host}:{load.port}", **load.headers, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.request = f"POST {load.path} HTTP/1.1\r\n{head}\r\n".encode() + body
        self.expected = pathlib.Path(load.expected).read_bytes() if load.expected else None
        self.answers: dict[int, int] = {}
        self.wrong = 0
        self.begun: list[float] = []
        self.latencies: list[float] = []
        self.seconds = 0.0
        self._due: deque[float] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._over = False

    async def run(self) -> None:
        self._start = time.perf_counter()
        asking = [asyncio.create_task(self._ask()) for _ in range(self.load.connections)]
        if self.load.rate is None:
            await asyncio.sleep(self.load.seconds)
        else:
            await self._schedule(self.load.rate)
        self._over = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        await asyncio.gather(*asking)
        self.seconds = time.perf_counter() - self._start

    async def _schedule(self, rate: float) -> None:
        draw, due = random.Random(self.load.seed), 0.0
        while True:
            due += draw.expovariate(rate)
            if due > self.load.seconds:
                return
            wait = due - (time.perf_counter() - self._start)
            if wait > 0:
                await asyncio.sleep(wait)
            self._due.append(due)
            while self._waiting:
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_result(None)
                    break

    async def _next(self) -> float | None:
        """When the next request is due; None: there is none any more."""
        if self.load.rate is None:
            return None if self._over else time.perf_counter() - self._start
        while not self._due:
            if self._over:
                return None
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        return self._due.popleft()

    async def _ask(self) -> None:
        """One connection, opened again where it breaks."""
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        while (due := await self._next()) is not None:
            try:
                async with asyncio.timeout(self.load.timeout):
                    if writer is None or reader is None:
                        reader, writer = await asyncio.open_connection(self.load.host, self.load.port, limit=1 << 20)
                    writer.write(self.request)
                    status, body, keep = await _answer(reader)
            except (OSError, EOFError, ValueError, TimeoutError):
                status, body, keep = FAILED, b"", False
            ended = time.perf_counter() - self._start
            self.answers[status] = self.answers.get(status, 0) + 1
            if status == 200:
                self.begun.append(due)
                self.latencies.append(ended - due)
                self.expected = self.expected or body
                self.wrong += body != self.expected
            if not keep and writer is not None:
                writer.close()
                reader = writer = None
            if status == FAILED:
                # A server that is away is not asked a thousand times a second.
                await asyncio.sleep(0.05)
        if writer is not None:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection stays."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ", 2)[1])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return status, body, headers.get("connection", "").lower() != "close"


def memory(pid: int) -> int:
    """Bytes of a process and of all that it has started, pages that several share counted in parts (Linux)."""
    children: dict[int, list[int]] = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    total, left = 0, [pid]
    while left:
        one = left.pop()
        left += children.get(one, [])
        try:
            lines = pathlib.Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def watch_memory(pid: int, seconds: float, over: threading.Event) -> list[tuple[float, int]]:
    """(seconds, bytes) of a process and its children, each few seconds until `over` is set."""
    started, found = time.perf_counter(), list[tuple[float, int]]()
    while True:
        found.append((time.perf_counter() - started, memory(pid)))
        if over.wait(seconds):
            return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Load(**json.load(sys.stdin))))))
