"""How long a .tflite file takes to run on this machine."""

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt.config import require
from tfopt.record import Record
from tfopt.tflite.flatbuffer import read_tflite

WORKER = pathlib.Path(__file__).with_name("latency_worker.py")


@dataclasses.dataclass(frozen=True)
class Latency(Record):
    """Time of one invocation, without copying inputs and outputs.

    Args:
      median_ms: median of the runs, in milliseconds.
      p90_ms: nine runs of ten took at most this long.
      runs: timed invocations.
      runtime: such as "ai-edge-litert 2.3.0, XNNPACK".
      threads: of the interpreter.
      cpu: model name of the processor.
    """

    median_ms: float
    p90_ms: float
    runs: int
    runtime: str
    threads: int
    cpu: str


def measure_latency(
    path: str | os.PathLike[str],
    threads: int = 1,
    runs: int = 50,
    warmup: int = 10,
    seed: int = 0,
    timeout: float = 300.0,
) -> Latency:
    """Times a .tflite file in a process of its own; see `measure_latencies`."""
    return measure_latencies([path], threads, runs, warmup, seed, timeout)[0]


def measure_latencies(
    paths: Sequence[str | os.PathLike[str]],
    threads: int = 1,
    runs: int = 50,
    warmup: int = 10,
    seed: int = 0,
    timeout: float = 300.0,
) -> list[Latency]:
    """Times several .tflite files so that their ratios are fair.

    Each file has LiteRT's interpreter in a process of its own. They take turns, one invocation each, in a
    random order every round, so that whatever slows the machine for a while slows all of them alike. With one thread
    each, several files share one CPU where the system allows it: else one process may spend its life on a busy one.

    Args:
      paths: the files, at least one.
      threads: of each interpreter, at least 1.
      runs: timed invocations of each file, at least 1.
      warmup: invocations before these, at least 0.
      seed: of the random inputs, of the order, and of the CPU that several files share.
      timeout: seconds for the whole measurement, above 0.

    Returns:
      One `Latency` for each path, in the order given.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or needs ops that LiteRT's own runtime does not have.
      RuntimeError: the interpreter failed; the message is its own.
      TimeoutError: the measurement took longer than `timeout`.
    """
    for name, value, least in (("threads", threads, 1), ("runs", runs, 1), ("warmup", warmup, 0)):
        require(value >= least, f"{name} must be at least {least}, received {value!r}")
    require(timeout > 0, f"timeout must be above 0 seconds, received {timeout!r}")
    require(len(paths) > 0, "paths is empty: give at least one .tflite file")
    for path in paths:
        file = read_tflite(path)
        needed = file.flex_ops or file.custom_ops
        require(
            not needed,
            f"{path} needs {', '.join(needed)}, which LiteRT's own runtime does not have: it cannot run",
        )
    deadline = time.monotonic() + timeout
    cpu = _shared_cpu(seed) if len(paths) > 1 and threads == 1 else None
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(path, threads, seed, cpu, deadline, timeout)) for path in paths]
        runtimes = [worker.answer()["runtime"] for worker in workers]
        for worker in workers:
            worker.run(warmup)
        milliseconds: list[list[float]] = [[] for _ in workers]
        generator = np.random.default_rng(seed)
        for _ in range(runs):
            for i in generator.permutation(len(workers)):
                milliseconds[i] += workers[i].run(1)
    name = cpu_name()
    return [
        Latency(float(np.median(taken)), float(np.percentile(taken, 90)), runs, runtime, threads, name)
        for taken, runtime in zip(milliseconds, runtimes, strict=True)
    ]


def _shared_cpu(seed: int) -> int | None:
    """One of the CPUs that this process may use; None: the system does not let it choose."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[seed % len(cpus)]


def cpu_name() -> str:
    """The processor's model name, as the system tells it."""
    information = pathlib.Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


class _Worker:
    """A process that holds one interpreter; ended with the `with` block."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int,
        seed: int,
        cpu: int | None,
        deadline: float,
        timeout: float,
    ) -> None:
        self.path, self.deadline, self.timeout = path, deadline, timeout
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Pipes have no time limit of their own on all systems, hence the threads; both also keep the pipes
        # from filling up.
        self.lines: queue.Queue[str] = queue.Queue()
        self.chatter: list[str] = []
        threading.Thread(target=self._read_answers, daemon=True).start()
        self.listener = threading.Thread(target=self._read_chatter, daemon=True)
        self.listener.start()
        self._ask({"path": str(path), "threads": threads, "seed": seed, "cpu": cpu})

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.listener.join()
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def run(self, runs: int) -> list[float]:
        """Invokes the file; returns the milliseconds of each run."""
        if runs == 0:
            return []
        self._ask({"runs": runs})
        return self.answer()["milliseconds"]

    def answer(self) -> dict[str, Any]:
        """The next answer of the process."""
        try:
            line = self.lines.get(timeout=max(0.0, self.deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(
                f"timing {self.path} took longer than {self.timeout:g} s: use fewer runs, or raise timeout"
            ) from None
        answer = json.loads(line) if line else {"error": self._end()}
        if "error" in answer:
            raise RuntimeError(f"LiteRT cannot run {self.path}: {answer['error']}")
        return answer

    def _ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin
        # A process that has died is reported with its reason where its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def _read_answers(self) -> None:
        assert self.process.stdout
        with self.process.stdout as answers:
            for line in answers:
                self.lines.put(line)
        self.lines.put("")

    def _read_chatter(self) -> None:
        assert self.process.stderr
        with self.process.stderr as chatter:
            self.chatter += chatter

    def _end(self) -> str:
        code = self.process.wait()
        self.listener.join()
        written = "".join(self.chatter)[-2000:].strip()
        return f"its process ended with code {code}; it wrote: {written or 'nothing'}"
