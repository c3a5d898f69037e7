"""`supervise`: runs the worker processes of one host, and starts all of them again when one dies."""

import collections
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TextIO

from tfopt.config import require
from tfopt.workers.addresses import Workers
from tfopt.workers.preemption import PREEMPTED

# The exit code of a worker that lost another one: start it again, as after PREEMPTED.
LOST_PEER = 76
# An error that was told, and arguments that cannot be read: both would come again.
FINAL = (1, 2)
SUPERVISED = "TFOPT_SUPERVISED"

_CHILD = pathlib.Path(__file__).with_name("child.py")
_LINES_KEPT = 20
_LONGEST_LINE = 2**16
_SECONDS_TO_LOOK = 0.05
# What was lost because of another worker may be seen before the other's end.
_SECONDS_TO_SETTLE = 1.0


def local_workers(count: int) -> list[Workers]:
    """Workers on free ports of this host.

    >>> [each.index for each in local_workers(2)]
    [0, 1]
    """
    require(isinstance(count, int) and count >= 1, f"local_workers must be a whole number from 1, received {count!r}")
    with contextlib.ExitStack() as stack:
        # All at once, so that they differ.
        ports = [stack.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in range(count)]
    addresses = tuple(f"localhost:{port}" for port in ports)
    return [Workers(addresses, index) for index in range(count)]


def supervise(
    command: Sequence[str],
    workers: Sequence[Workers] | Callable[[], Sequence[Workers]],
    *,
    restarts: int = 3,
    grace: float = 20.0,
    environ: Mapping[str, str] | None = None,
    output: tuple[TextIO, TextIO] | None = None,
) -> int:
    """Runs a command once for each worker, until all have ended well.

    When one dies, all are stopped, by SIGTERM and then by SIGKILL, and started again. Their lines are passed on, each
    with the worker's index before it. No process stays behind, even when this one is killed.

    Args:
      command: program and arguments; each process gets TF_CONFIG and TFOPT_SUPERVISED=1 in its environment.
      workers: those of this host; a function gives new ones for each start.
      restarts: how often all are started again after a death before it is an error, at least 0. Those after
        PREEMPTED do not count.
      grace: seconds between SIGTERM and SIGKILL.
      environ: environment of the processes; None: that of this one.
      output: where their lines go; None: standard output and error.

    Returns:
      The exit code: 0; 1 after too many deaths; that of a worker, where it is 1 or 2, which is not tried again;
      PREEMPTED after a SIGTERM or SIGINT to this process.

    Raises:
      ValueError: restarts or grace below 0, or no workers.
    """
    require(restarts >= 0, f"restarts must be at least 0, received {restarts}")
    require(grace >= 0, f"grace must be at least 0 seconds, received {grace}")
    environ = os.environ if environ is None else environ
    voice, failures, starts = _Voice(output or (sys.stdout, sys.stderr)), 0, 0
    with _signals(voice):
        while True:
            team = workers() if callable(workers) else workers
            require(len(team) > 0, "there are no workers to start")
            running = _start(command, team, environ, voice)
            try:
                _watch(running, voice, grace)
                # What ends from now on was ended from here.
                causes = [each for each in running if each.code() not in (None, 0)]
                done = all(each.code() == 0 for each in running)
            finally:
                _end(running, voice, grace)
            if done:
                return 0
            if voice.stop:
                return PREEMPTED
            cause = min(causes, key=lambda each: (each.code() in (LOST_PEER, PREEMPTED), each.ended))
            code, starts = cause.code(), starts + 1
            assert code is not None
            if code in FINAL:
                voice.say(f"{cause.name} ended with exit code {code}: an error that another start would not mend")
                return code
            failures += code != PREEMPTED
            if failures > restarts:
                voice.say(
                    f"error: {cause.name} {_describe(code)}, and {restarts} restarts are used up (--restarts); "
                    f"{cause.said()}"
                )
                return 1
            pause = _pause(starts)
            count = "not counted" if code == PREEMPTED else f"restart {failures} of {restarts}"
            voice.say(f"{cause.name} {_describe(code)}; all workers are started again in {pause:g} s ({count})")
            if voice.wait(pause):
                return PREEMPTED


class _Voice:
    """Where lines go, one at a time, and whether it is time to stop."""

    def __init__(self, output: tuple[TextIO, TextIO]) -> None:
        self.output, self.lock, self.stop = output, threading.Lock(), 0

    def write(self, place: int, text: str) -> None:
        try:
            with self.lock:
                self.output[place].write(text)
                self.output[place].flush()
        except OSError:
            # Nobody reads any more, as after `| head`.
            self.stop = self.stop or 1

    def say(self, text: str) -> None:
        self.write(1, f"[supervisor] {text}\n")

    def wait(self, seconds: float) -> bool:
        """Whether to stop, within so many seconds."""
        until = time.monotonic() + seconds
        while not self.stop and time.monotonic() < until:
            time.sleep(_SECONDS_TO_LOOK)
        return bool(self.stop)


class _Process:
    """One worker process, under its guard `child.py`."""

    def __init__(self, command: Sequence[str], workers: Workers, environ: Mapping[str, str], voice: _Voice) -> None:
        self.name, self.ended = workers.name(workers.index), 0.0
        own = {"TF_CONFIG": workers.config(), SUPERVISED: "1"}
        # Without paths of this environment: the guard needs the standard library only, and starts at once.
        guard = [sys.executable, "-I", "-S", str(_CHILD), *command]
        self.process = subprocess.Popen(
            guard,
            env={"PYTHONUNBUFFERED": "1", **environ, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.input = process.stdin
        self.tail: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        prefix = f"[worker {workers.index}] "
        self.readers = [
            threading.Thread(target=self._forward, args=(stream, place, prefix, voice), daemon=True)
            for place, stream in enumerate((process.stdout, process.stderr))
        ]
        for each in self.readers:
            each.start()

    def _forward(self, stream: IO[str], place: int, prefix: str, voice: _Voice) -> None:
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                line = line.removesuffix("\n")
                if place == 1:
                    self.tail.append(line)
                voice.write(place, f"{prefix}{line}\n")

    def code(self) -> int | None:
        """Its exit code, 128 and more for signals; None as long as it runs."""
        code = self.process.poll()
        if code is None:
            return None
        self.ended = self.ended or time.monotonic()
        return code if code >= 0 else 128 - code

    def said(self) -> str:
        if not self.tail:
            return "it wrote nothing to its standard error"
        return "the end of what it wrote to its standard error:\n" + "\n".join(f"  {line}" for line in self.tail)

    def kill(self) -> None:
        """Ends it, and all that it started."""
        # The guard does it, and can find what has left the group; the group, where the guard is gone or hangs.
        with contextlib.suppress(BrokenPipeError):
            self.input.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for each in self.readers:
            each.join(5)


def _start(
    command: Sequence[str], team: Sequence[Workers], environ: Mapping[str, str], voice: _Voice
) -> list[_Process]:
    running: list[_Process] = []
    try:
        for each in team:
            running.append(_Process(command, each, environ, voice))
    except BaseException:
        _end(running, voice, 0)
        raise
    return running


def _watch(running: Sequence[_Process], voice: _Voice, grace: float) -> None:
    """Waits until all have ended, one has failed, or it is time to stop."""
    until = float("inf")
    while not voice.stop and time.monotonic() < until:
        codes = {each.code() for each in running}
        if None not in codes or codes - {None, 0, PREEMPTED, LOST_PEER}:
            return
        if codes & {PREEMPTED, LOST_PEER}:
            # Others save too, or are the reason.
            seconds = grace if PREEMPTED in codes else _SECONDS_TO_SETTLE
            until = min(until, time.monotonic() + seconds)
        time.sleep(_SECONDS_TO_LOOK)


def _end(running: Sequence[_Process], voice: _Voice, grace: float) -> None:
    """Ends all that still run; a second signal to this process makes it not wait."""
    for each in running:
        if each.code() is None:
            each.process.terminate()
    until = time.monotonic() + grace
    while any(each.code() is None for each in running) and time.monotonic() < until and voice.stop < 2:
        time.sleep(_SECONDS_TO_LOOK)
    for each in running:
        each.kill()


@contextlib.contextmanager
def _signals(voice: _Voice) -> Iterator[None]:
    """SIGTERM and SIGINT say that it is time to stop, as long as the block lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        voice.stop += 1

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe(code: int) -> str:
    """What an exit code means.

    >>> _describe(137), _describe(3)
    ('was ended by SIGKILL', 'ended with exit code 3')
    """
    known = {PREEMPTED: "saved its state after a SIGTERM and ended", LOST_PEER: "lost another worker and ended"}
    if code in known:
        return known[code]
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(code - 128).name}"
    return f"ended with exit code {code}"


def _pause(starts: int) -> float:
    """Seconds before a further start.

    >>> [_pause(starts) for starts in (1, 2, 3, 9)]
    [0.5, 1.0, 2.0, 30.0]
    """
    return min(30.0, 0.5 * 2.0 ** (starts - 1))
