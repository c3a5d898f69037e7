"""`Clock`: the time that a search may take, and has taken."""

import json
import pathlib
import time

from tfopt.files import write_text

# A tenth of the time is left for what is not foreseen.
_USABLE = 0.9


class Clock:
    """The time that a search has taken, over all its attempts."""

    def __init__(self, workdir: pathlib.Path, limit: float) -> None:
        self._path, self.limit = workdir / "clock.json", limit
        known = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self._before, self._setup = known.get("seconds", 0.0), known.get("setup")
        self._started = time.perf_counter()

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._started

    @property
    def usable(self) -> float:
        """For candidates, in all: fixed once all is measured, so that a search that goes on plans the same."""
        assert self._setup is not None
        return _USABLE * max(0.0, self.limit - self._setup)

    def prepared(self) -> None:
        """Notes that all is measured."""
        if self._setup is None:
            self._setup = self.seconds
        self.save()

    def save(self) -> None:
        """Keeps the time for the next attempt."""
        write_text(self._path, json.dumps({"seconds": self.seconds, "setup": self._setup}))
