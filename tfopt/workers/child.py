"""Runs one worker for its supervisor and ends all that the worker started; run as a script, without tfopt.

Arguments: the worker's command. The standard input is a pipe that the supervisor holds: when it ends, because the
supervisor says so or was killed, the worker is killed. SIGTERM goes on to the worker. Ends with the worker's exit
code, or 128 plus the number of the signal that ended it, and leaves no process behind: not those that moved to
another process group either, since on Linux orphans become children of this process.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import Any

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Runs the command."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *arguments: 0
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    started: list[subprocess.Popen[bytes]] = []

    def terminate(*_: Any) -> None:
        if not started:
            sys.exit(128 + signal.SIGTERM)
        started[0].terminate()

    signal.signal(signal.SIGTERM, terminate)
    # So that the worker does not outlive this process either.
    worker = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    started.append(worker)
    orphaned = threading.Event()

    def watch() -> None:
        while os.read(0, 1):
            continue
        orphaned.set()
        worker.kill()

    threading.Thread(target=watch, daemon=True).start()
    code = worker.wait()
    _end_the_others()
    if orphaned.is_set():
        # Where nothing but the group tells who belongs here.
        os.killpg(0, signal.SIGKILL)
    # As watch.py says that another worker has ended.
    code = {-signal.SIGUSR1: 1, -signal.SIGUSR2: 76}.get(code, code)
    os._exit(code if code >= 0 else 128 - code)


def _end_the_others() -> None:
    """Kills the children of this process, and theirs, which become its own."""
    path = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
    while path.exists() and (children := path.read_text().split()):
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


if __name__ == "__main__":
    main()
