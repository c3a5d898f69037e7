"""Starting a server from Python, for tests, notebooks and benchmarks."""

import contextlib
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

from tfopt.files import Path

MAIN = pathlib.Path(__file__).with_name("main.py")


@contextlib.contextmanager
def serving(path: Path, seconds: float = 300.0, **flags: object) -> Iterator[str]:
    """Runs `python -m tfopt.serve` for as long as the block lasts.

    Args:
      path: of the model or models.
      seconds: for it to start, at most.
      flags: of the command line; `port` is any that is free unless given.

    Yields:
      Its URL, such as "http://127.0.0.1:40123".

    Raises:
      RuntimeError: it did not start; what it wrote is on the standard error.
    """
    process = start(path, None, **flags)
    try:
        yield wait_for_url(process, seconds)
    finally:
        end(process)


def start(path: Path, log: Path | None = None, **flags: object) -> subprocess.Popen[str]:
    """Starts the process, without waiting for it; `log` is a file for what it says, else the standard error is."""
    given = [f"--{name}={value}" for name, value in {"port": 0, **flags}.items()]
    command = [sys.executable, "-P", str(MAIN), str(path), *given]
    with contextlib.nullcontext() if log is None else open(log, "ab") as said:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True)


def wait_for_url(process: subprocess.Popen[str], seconds: float) -> str:
    """The URL that a server says when it answers."""
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("serving at "):
                return line.removeprefix("serving at ").strip()
    finally:
        timer.cancel()
    raise RuntimeError(f"the server did not start within {seconds:g} s, or ended with status {process.wait()}")


def end(process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    """Lets a server answer what it is asked, and end."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
