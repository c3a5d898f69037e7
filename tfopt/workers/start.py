"""`Start`: what the flags of a recipe say about processes, and what follows from it."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfopt.config import Config, did_you_mean, require
from tfopt.train.strategies import STRATEGIES
from tfopt.workers.addresses import Workers, find_workers
from tfopt.workers.meet import check_same, join
from tfopt.workers.supervise import SUPERVISED, local_workers

_WITH_WORKERS = ("auto", "multi_worker")
# A host may be started later by hand, or be slow to import.
_SECONDS_TO_MEET = 300.0


@dataclasses.dataclass(frozen=True, repr=False)
class Start(Config):
    """How a recipe is spread over processes and hosts.

    Args:
      strategy: auto, one_device, mirrored, multi_worker, tpu or horovod.
      workers: host:port of every worker, separated by commas; the same command runs on each host.
      worker_index: which of --workers this host is, from 0; found by its names and addresses where not given.
      local_workers: workers to start on this host.
      restarts: how often all workers are started again when one dies, at least 0.

    Raises:
      ValueError: the arguments contradict each other or are out of range.
    """

    strategy: str = "auto"
    workers: str | None = None
    worker_index: int | None = None
    local_workers: int | None = None
    restarts: int = 3

    def __post_init__(self) -> None:
        require(
            self.strategy in STRATEGIES,
            f"--strategy={self.strategy} does not exist: {did_you_mean(self.strategy, STRATEGIES)}",
        )
        require(self.restarts >= 0, f"--restarts must be at least 0, received {self.restarts}")
        local = self.local_workers
        require(local is None or local >= 1, f"--local_workers must be at least 1, received {local}")
        for flag, given in (("workers", self.workers), ("local_workers", local)):
            require(
                not given or self.strategy in _WITH_WORKERS,
                f"--{flag} goes with --strategy=multi_worker, received --strategy={self.strategy}: leave one of "
                "them out",
            )
        require(
            not self.workers or local is None,
            "--workers names processes on all hosts, --local_workers starts some on this one: give one of them",
        )
        require(
            self.worker_index is None or bool(self.workers),
            f"--worker_index={self.worker_index} says which one of --workers this host is, and there are none: give "
            "--workers, or leave it out",
        )
        if self.workers:
            # Without looking for this host yet.
            find_workers(self.workers, self.worker_index or 0, {})

    def team(self, environ: Mapping[str, str] = os.environ) -> Sequence[Workers] | Callable[[], list[Workers]] | None:
        """The workers to be started and supervised here; None where this process is to do the work itself.

        Raises:
          ValueError: what was found cannot be right, or nothing says who the workers are.
        """
        if environ.get(SUPERVISED) or self.strategy not in _WITH_WORKERS:
            return None
        in_config = bool(environ.get("TF_CONFIG", "").strip())
        count = self.local_workers
        if count is not None:
            require(not in_config, "--local_workers starts workers, and TF_CONFIG names others: unset it")
            return lambda: local_workers(count)
        workers = find_workers(self.workers, self.worker_index, environ)
        require(
            workers is not None or self.strategy == "auto",
            "--strategy=multi_worker needs workers: --local_workers=2 for processes on this host, "
            "--workers=host1:5000,host2:5000 on each host, TF_CONFIG, or several tasks of srun",
        )
        # Who sets TF_CONFIG has started this process as a worker, and looks after it.
        return None if workers is None or (in_config and not self.workers) else [workers]

    def own(self, environ: Mapping[str, str] = os.environ) -> Workers | None:
        """Which worker this process is, where it does the work itself; None: it works alone."""
        if self.strategy not in _WITH_WORKERS or not environ.get("TF_CONFIG", "").strip():
            return None
        return find_workers(None, None, environ)


def facts_of(recipe: str, stages: Callable[..., Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """What all workers must have in common: versions, recipe and flags."""
    source = pathlib.Path(inspect.getfile(stages)).read_bytes()
    packages = ("tfopt", "tensorflow", "keras", "numpy")
    own = ("worker_index", "restarts", "traceback")
    return {
        **{package: importlib.metadata.version(package) for package in packages},
        "python": platform.python_version(),
        "recipe": recipe,
        "source of the recipe": hashlib.sha256(source).hexdigest()[:12],
        **{f"--{key}": value for key, value in flags.items() if key not in own},
    }


@contextlib.contextmanager
def together(
    workers: Workers, facts: Mapping[str, Any], losses: tuple[type[Exception], ...], seconds: float = _SECONDS_TO_MEET
) -> Iterator[None]:
    """Waits for all workers, and in the block watches over them: where another one ends, this process does too.

    Args:
      workers: all of them, and which one this is.
      facts: what they must have in common.
      losses: the errors of TensorFlow that mean that another worker was lost.
      seconds: how long to wait.

    Raises:
      OSError: the own port cannot be used, or a worker does not come.
      ValueError: the workers do not run the same.
    """
    others = [each for each in workers.addresses if each != workers.address]
    if others:
        name = workers.name(workers.index)
        print(f"{name} waits for {', '.join(others)}, {seconds:g} s at most", file=sys.stderr)  # noqa: T201
    link = join(workers, json.dumps(facts), seconds)
    try:
        check_same(workers, [json.loads(text) for text in link.texts])
    except ValueError:
        link.close()
        raise
    with link.watched(losses):
        yield


def own_command(argv: Sequence[str] | None = None) -> list[str]:
    """The command that starts this program again, with the same options of Python.

    Args:
      argv: the program's name and its arguments, where these are others than this process got.

    Raises:
      ValueError: the program is in no file, as in a notebook.
    """
    main = sys.modules["__main__"]
    require(
        getattr(main, "__spec__", None) is not None or hasattr(main, "__file__"),
        "workers are started as `python file.py` or `python -m module`; this program is in no file: write it to one",
    )
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    return [sys.executable, *options, *(sys.argv if argv is None else argv)[1:]]
