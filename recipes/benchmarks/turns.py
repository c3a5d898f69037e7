"""Fair measurements of variants: times in turns within one process, and the memory that a call takes."""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any


def time_in_turns(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant's call by turn, in an order that turns round; one more first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name in list(variants) if turn % 2 else list(variants)[::-1]:
            started = time.perf_counter()
            variants[name]()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def added_memory(call: Callable[[], Any]) -> int:
    """The bytes that a call takes at its peak, beyond what the process takes before it (Linux only)."""
    before = _status("VmRSS")
    # Linux forgets the peak so far.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A figure of this process in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))
