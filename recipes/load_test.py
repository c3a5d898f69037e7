"""A server under load: errors, wrong answers, latency percentiles and the growth of its memory.

    python -m recipes.load_test --model=m.tflite --minutes=10
    python -m recipes.load_test --model=m.tflite --minutes=2 --kill_replica
    python -m recipes.load_test --url=http://127.0.0.1:8501 --name=model --rate=100

Serves the model, or asks a server that runs; first for its throughput at saturation, then at half of that, or --rate,
for so many minutes. Each answer is compared with the first one, byte by byte. Ends with exit code 1 where a request
failed or was answered wrongly, or the memory grew; with --kill_replica a worker is killed in the middle, and requests
may fail with status 503, as many as were in flight on it.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import rich.console
import rich.table
from absl import flags

from recipes.benchmarks import load_client
from recipes.benchmarks.load_request import prepare
from tfopt.config import require
from tfopt.serve import process as server

_FLAGS = flags.FlagValues()
_OWN: dict[str, Any] = {"flag_values": _FLAGS}
_MODEL = flags.DEFINE_string("model", None, "File or folder to serve.", **_OWN)
_URL = flags.DEFINE_string("url", None, "A server that runs, in place of --model.", **_OWN)
_NAME = flags.DEFINE_string("name", "model", "Name of the model.", **_OWN)
_PID = flags.DEFINE_integer("pid", None, "Of the server at --url, to watch its memory and to kill a worker.", **_OWN)
_TOKEN = flags.DEFINE_string("token_file", None, "File whose first line is the token to send.", **_OWN)
_ENGINE = flags.DEFINE_enum("engine", "local", ["local", "ray"], "Of the server for --model.", **_OWN)
_REPLICAS = flags.DEFINE_integer("replicas", 2, "Workers of the server for --model.", **_OWN)
_EXAMPLES = flags.DEFINE_integer("examples", 1, "Examples in a request, for a model of any number.", **_OWN)
_CONNECTIONS = flags.DEFINE_integer("connections", 16, "Open at a time.", **_OWN)
_RATE = flags.DEFINE_float("rate", None, "Requests a second; else half of the throughput at saturation.", **_OWN)
_MINUTES = flags.DEFINE_float("minutes", 10.0, "Of the load.", **_OWN)
_KILL = flags.DEFINE_bool("kill_replica", False, "Kill a worker with SIGKILL in the middle.", **_OWN)

_SECONDS_TO_SATURATE = 10.0
# Growth of the memory between the second quarter and the last one that counts as growing, and so many bytes.
MOST_GROWTH, LEAST_BYTES = 0.05, 8 * 2**20
_SECONDS_TO_RETURN = 120.0


@dataclasses.dataclass
class Found:
    """What a load showed.

    Args:
      asked: requests a second that were to be sent.
      measured: as `load_client.measure` gives it.
      memory: (seconds, bytes) of the server and its processes.
      killed: worker that was killed; 0: none.
      seconds_to_return: until as many workers ran again.
      faults: what was not as it should be.
    """

    asked: float
    measured: dict[str, Any]
    memory: list[tuple[float, int]]
    killed: int = 0
    seconds_to_return: float = 0.0
    faults: list[str] = dataclasses.field(default_factory=list)


def under_load(load: load_client.Load, pid: int | None, kill: bool, most_lost: int) -> Found:
    """Sends the load, watches the memory of the server, and kills one of its workers in the middle.

    Args:
      load: with a rate.
      pid: of the server; None: it is not watched.
      kill: whether to kill.
      most_lost: requests that may be answered 503 after a kill: those in flight on a worker.
    """
    assert load.rate is not None
    over, memory = threading.Event(), list[tuple[float, int]]()
    watching = threading.Thread(
        target=lambda: memory.extend(load_client.watch_memory(pid or 0, max(0.5, load.seconds / 200), over))
    )
    if pid:
        watching.start()
    found = Found(load.rate, {}, memory)
    sending = load_client.begin(load)
    try:
        if kill and pid:
            time.sleep(load.seconds / 2)
            found.killed, found.seconds_to_return = kill_worker(pid)
        found.measured = load_client.end(sending)
    finally:
        over.set()
        if pid:
            watching.join()
    found.faults = faults(found, most_lost if kill else 0)
    return found


def faults(found: Found, most_lost: int) -> list[str]:
    """What was not as it should be."""
    answers = {int(status): count for status, count in found.measured["answers"].items()}
    lost, bad = answers.get(503, 0), {key: count for key, count in answers.items() if key not in (200, 503)}
    said = [f"{count} requests with {f'status {key}' if key else 'a broken connection'}" for key, count in bad.items()]
    if lost > most_lost:
        said.append(f"{lost} requests with status 503, where {most_lost} may be lost")
    if found.measured["wrong"]:
        said.append(f"{found.measured['wrong']} wrong answers")
    if found.memory:
        before, after = growth(found.memory)
        if after - before > max(MOST_GROWTH * before, LEAST_BYTES) and not found.killed:
            said.append(f"the memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    if found.killed and found.seconds_to_return > _SECONDS_TO_RETURN:
        said.append("the worker that was killed did not come back")
    return said


def growth(memory: Sequence[tuple[float, int]]) -> tuple[int, int]:
    """The median of the memory in the second quarter of the time and in the last one."""
    values = [size for _, size in memory]
    quarter = max(1, len(values) // 4)
    return sorted(values[quarter : 2 * quarter] or values)[quarter // 2], sorted(values[-quarter:])[quarter // 2]


def workers(pid: int) -> list[int]:
    """The worker processes of a server."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = (stat.parent / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"serve/worker.py") for word in words) and pid in _ancestors(int(stat.parent.name)):
                found.append(int(stat.parent.name))
    return sorted(found)


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


def kill_worker(pid: int) -> tuple[int, float]:
    """Kills one of a server's workers; returns it, and the seconds until as many run again."""
    before = workers(pid)
    require(bool(before), f"the process {pid} has no workers of a tfopt server")
    os.kill(before[0], signal.SIGKILL)
    started = time.perf_counter()
    while time.perf_counter() - started <= _SECONDS_TO_RETURN:
        now = workers(pid)
        if before[0] not in now and len(now) >= len(before):
            break
        time.sleep(0.05)
    return before[0], time.perf_counter() - started


def show(found: Found, print_: Callable[[Any], Any]) -> None:
    """Prints what a load showed."""
    measured = found.measured
    answers = ", ".join(f"{count:,} x {status}" for status, count in sorted(measured["answers"].items()))
    table = rich.table.Table(
        "requests a second", "answered a second", "answers", "wrong", "p50, ms", "p90", "p99", "max"
    )
    latencies = measured["latencies"] or [float("nan")]
    shares = [f"{1e3 * load_client.percentile(latencies, share):.2f}" for share in (0.5, 0.9, 0.99, 1.0)]
    table.add_row(f"{found.asked:.1f}", f"{measured['rate']:.1f}", answers, str(measured["wrong"]), *shares)
    print_(table)
    if found.memory:
        before, after = growth(found.memory)
        print_(f"memory of the server: {before / 2**20:.1f} MiB in the second quarter, {after / 2**20:.1f} in the last")
    if found.killed:
        print_(f"worker {found.killed} was killed; as many ran again after {found.seconds_to_return:.1f} s")
    for fault in found.faults:
        print_(f"FAULT: {fault}")


@contextlib.contextmanager
def _server() -> Iterator[tuple[str, int | None]]:
    """URL and process of the server."""
    if _URL.value:
        yield _URL.value.rstrip("/"), _PID.value
        return
    running = server.start(_MODEL.value, engine=_ENGINE.value, replicas=_REPLICAS.value, name=_NAME.value)
    try:
        yield server.wait_for_url(running, 300.0), running.pid
    finally:
        server.end(running)


def main(arguments: list[str]) -> int:
    """Loads a server; returns the exit code."""
    if "--help" in arguments[1:]:
        print(f"{__doc__}\n{_FLAGS.main_module_help()}")
        return 0
    try:
        rest = _FLAGS(arguments)[1:]
        require(not rest, f"unexpected arguments: {' '.join(rest)}; flags are written --name=value")
        require((_MODEL.value is None) != (_URL.value is None), "give either --model or --url")
        require(not (_KILL.value and _URL.value and _PID.value is None), "--kill_replica needs --pid with --url")
    except (flags.Error, ValueError) as error:
        print(f"{error}\n(--help lists the flags)", file=sys.stderr)
        return 2
    console = rich.console.Console()
    try:
        headers = {}
        if _TOKEN.value:
            headers["Authorization"] = f"Bearer {pathlib.Path(_TOKEN.value).read_text().split()[0]}"
        with tempfile.TemporaryDirectory() as folder, _server() as (url, pid):
            load = prepare(url, pathlib.Path(folder), _NAME.value, _EXAMPLES.value, headers=headers).load
            load = dataclasses.replace(load, connections=_CONNECTIONS.value)
            rate = _RATE.value
            if rate is None:
                most = load_client.run(dataclasses.replace(load, seconds=_SECONDS_TO_SATURATE))["rate"]
                console.print(f"at saturation: {most:.1f} requests a second on {_CONNECTIONS.value} connections")
                rate = most / 2
            soak = dataclasses.replace(load, rate=rate, seconds=60 * _MINUTES.value)
            found = under_load(soak, pid, _KILL.value, most_lost=_CONNECTIONS.value)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(found, console.print)
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
