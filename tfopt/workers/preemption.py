"""SIGTERM: a training saves where it stands and ends; anything else ends at once, since it is begun anew anyway."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

# The exit code that says: start the same command again, it goes on from here (EX_TEMPFAIL).
PREEMPTED = 75


class Preempted(SystemExit):
    """The process was asked to end, and what it has done is saved."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


_asked = threading.Event()
_trains = threading.Event()


def is_asked_to_end() -> bool:
    """Whether a SIGTERM came."""
    return _asked.is_set()


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Inside the block a SIGTERM ends the process with exit code PREEMPTED, a training after it has saved.

    Only in the main thread, where Python handles signals; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked.clear()


@contextlib.contextmanager
def saves_when_asked() -> Iterator[None]:
    """A training that looks at `is_asked_to_end` by itself; raises Preempted at its end where it did not get to."""
    _trains.set()
    try:
        yield
    finally:
        _trains.clear()
    if _asked.is_set():
        raise Preempted


def _on_sigterm(number: int, frame: Any) -> None:
    _asked.set()
    if not _trains.is_set():
        raise Preempted
