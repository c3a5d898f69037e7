"""Servers beside a bare interpreter loop: throughput at saturation, latency at half load, memory, time to start.

    python -m venv runs/peers && runs/peers/bin/pip install bentoml litserve ai-edge-litert==2.3.0
    python -m recipes.benchmarks.serving --peers=runs/peers --rounds=5 --turn_seconds=20

The same int8 file for all, as many workers of one thread each, one tensor a request, the same clients in a process of
their own. tfopt (local and Ray) gets tensors in KServe's binary form; BentoML and LitServe, which have environments of
their own, as base64 in JSON. Each round starts every server once, one after the other: half load is half of what it has
just answered at saturation, or --common_rate. Where an answer is wrong or fails, that is an error.
"""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import rich.console
import rich.table
from absl import app, flags

import tfopt
from recipes.benchmarks.load_client import Load, memory, percentile, run
from recipes.benchmarks.load_request import prepare
from recipes.benchmarks.rounds import ROUNDS
from tfopt.config import require
from tfopt.report import describe_environment
from tfopt.serve.process import MAIN
from tfopt.tflite.flatbuffer import read_tflite

_ENGINES = ("local", "ray", "bentoml", "litserve")
_NAMES = flags.DEFINE_list("engines", list(_ENGINES), "Which servers, beside the bare loop.")
_PEERS = flags.DEFINE_string(
    "peers", os.environ.get("TFOPT_PEERS"), "Folder of a virtual environment with BentoML and LitServe; or TFOPT_PEERS."
)
_FILE = flags.DEFINE_string("served_file", "runs/serving/mobilenet_v2_int8.tflite", "Made where it is not there.")
_PIXELS = flags.DEFINE_integer("served_side", 224, "Of the images of the file that is made.", lower_bound=32)
_REPLICAS = flags.DEFINE_integer("server_replicas", 2, "Workers, each on one thread.", lower_bound=1)
_CONNECTIONS = flags.DEFINE_integer("client_connections", 8, "Requests at a time, at saturation.", lower_bound=1)
_SECONDS = flags.DEFINE_float("turn_seconds", 20.0, "Of each measurement.", lower_bound=0.5)
_RATE = flags.DEFINE_float("common_rate", None, "Requests a second for all, in place of half of their own.")

_FOLDER = pathlib.Path(__file__).parent
_WARM_UP = 2.0
_SECONDS_TO_START = 180.0


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a server showed in one round.

    Args:
      throughput: examples a second at saturation.
      rate: requests a second at half load.
      latencies: at half load, seconds.
      memory: bytes of all of its processes, at half load.
      start: seconds until the first answer.
    """

    throughput: float
    rate: float
    latencies: Sequence[float]
    memory: int
    start: float


@dataclasses.dataclass(frozen=True)
class Server:
    """A server to be measured.

    Args:
      command: starts it.
      environ: what it needs besides.
      load: given the URL and a folder, prepares a request.
    """

    command: Sequence[str]
    environ: Mapping[str, str]
    load: Callable[[pathlib.Path], Load]


def make_file(path: pathlib.Path, side: int) -> None:
    """MobileNetV2 with random weights as an int8 file of one image a run."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((side, side, 3), weights=None, classes=1000)
    images = np.random.default_rng(0).random((16, side, side, 3), "float32")
    path.parent.mkdir(parents=True, exist_ok=True)
    tfopt.export_tflite(model, path, quantization="int8", calibration_data=images)


def tensor_of(path: pathlib.Path) -> tuple[str, np.ndarray]:
    """Name and values of the file's only input, as it stores them."""
    ((name, tensor),) = read_tflite(path).inputs.items()
    require(-1 not in tensor.shape, f"{path} has the open shape {tensor.shape}: export it with batch_size=1")
    limits = np.iinfo(tensor.dtype)
    values = np.random.default_rng(0).integers(limits.min, limits.max + 1, tensor.shape)
    return name, values.astype(tensor.dtype)


def servers(file: pathlib.Path, port: int, replicas: int, peers: str | None) -> dict[str, Server]:
    """The servers by name."""
    name, tensor = tensor_of(file)

    def own(folder: pathlib.Path) -> Load:
        return prepare(f"http://127.0.0.1:{port}", folder, arrays={name: tensor}).load

    def encoded(path: str) -> Callable[[pathlib.Path], Load]:
        def load(folder: pathlib.Path) -> Load:
            body = folder / "request.json"
            body.write_text(json.dumps({"data": base64.b64encode(tensor.tobytes()).decode()}))
            return Load("127.0.0.1", port, path, str(body), {"Content-Type": "application/json"})

        return load

    command = [sys.executable, "-P", str(MAIN), str(file), f"--port={port}", f"--replicas={replicas}"]
    found = {"local": Server(command, {}, own), "ray": Server([*command, "--engine=ray"], {}, own)}
    if peers:
        python = str(pathlib.Path(peers, "bin", "python").absolute())
        told = {"MODEL": str(file), "REPLICAS": str(replicas), "BENTOML_DO_NOT_TRACK": "True"}
        host = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(_FOLDER)]
        found["bentoml"] = Server(
            [python, "-m", "bentoml", "serve", "_serve_bentoml:Classifier", *host], told, encoded("/predict")
        )
        script = str(_FOLDER / "_serve_litserve.py")
        found["litserve"] = Server([python, script, str(file), str(port), str(replicas)], {}, encoded("/predict"))
    return found


def measure(server: Server, port: int) -> Turn:
    """Starts a server, loads it, and ends it."""
    with tempfile.TemporaryDirectory() as folder, running(server) as (process, started):
        _wait_for(process, port)
        load = _until_answered(process, lambda: _first(server.load(pathlib.Path(folder))))
        start = time.perf_counter() - started
        load = dataclasses.replace(load, connections=_CONNECTIONS.value, seconds=_WARM_UP)
        _checked(run(load))
        saturated = _checked(run(dataclasses.replace(load, seconds=_SECONDS.value)))
        rate = _RATE.value or saturated["rate"] / 2
        # More connections than at saturation: requests that come at a time must not wait in the client.
        half = dataclasses.replace(load, seconds=_SECONDS.value, rate=rate, connections=4 * _CONNECTIONS.value)
        found = _checked(run(half))
        return Turn(saturated["rate"], rate, found["latencies"], memory(process.pid), start)


@contextlib.contextmanager
def running(server: Server) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """The process of a server, and when it was started."""
    started = time.perf_counter()
    environ = {**os.environ, **server.environ}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            server.command, env=environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        try:
            yield process, started
        except Exception as error:
            said.seek(0)
            error.add_note(said.read()[-3000:].decode(errors="replace"))
            raise
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # LitServe leaves its workers behind, which would go on beside the next server.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    def connect() -> None:
        socket.create_connection(("127.0.0.1", port), 1).close()

    _until_answered(process, connect)


def _until_answered(process: subprocess.Popen[bytes], ask: Callable[[], Any]) -> Any:
    deadline = time.perf_counter() + _SECONDS_TO_START
    while True:
        try:
            return ask()
        except OSError as error:
            if process.poll() is not None or time.perf_counter() > deadline:
                raise RuntimeError(f"{process.args!r} did not start: {error}") from error
            time.sleep(0.05)


def _first(load: Load) -> Load:
    """The same load once it is answered; an OSError until then."""
    url = f"http://{load.host}:{load.port}{load.path}"
    request = urllib.request.Request(url, pathlib.Path(load.body).read_bytes(), dict(load.headers))
    with urllib.request.urlopen(request) as response:
        response.read()
    return load


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    others = {status: count for status, count in found["answers"].items() if int(status) != 200}
    if others or found["wrong"]:
        raise RuntimeError(f"answers by status {found['answers']}, {found['wrong']} of them wrong")
    return found


def measure_bare(file: pathlib.Path, replicas: int) -> Turn:
    """As many loops at a time as there are workers, without clients."""
    _, tensor = tensor_of(file)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        content = pathlib.Path(folder, "tensor.bin")
        content.write_bytes(tensor.tobytes())
        started, pipes = time.perf_counter(), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-P", str(_FOLDER / "serving_bare.py"), str(file), str(content)]
        loops = [stack.enter_context(subprocess.Popen(command, text=True, **pipes)) for _ in range(replicas)]  # type: ignore[call-overload]
        for loop in loops:
            require(loop.stdout.readline() == "ready\n", "the bare loop did not start")
        start = time.perf_counter() - started
        for loop in loops:
            loop.stdin.write(f"{_SECONDS.value}\n")
            loop.stdin.flush()
        time.sleep(_SECONDS.value / 2)
        size = sum(memory(loop.pid) for loop in loops)
        found = [json.loads(loop.stdout.readline()) for loop in loops]
    throughput = sum(len(each["times"]) / each["seconds"] for each in found)
    return Turn(throughput, throughput, [one for each in found for one in each["times"]], size, start)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def show(turns: Mapping[str, Sequence[Turn]], console: rich.console.Console) -> None:
    """Prints medians over the rounds; ratios of each round to its bare loop."""
    table = rich.table.Table(
        "", "examples a second", "of the bare loop", "half load, a second", "p50, ms", "p99, ms", "MiB", "start, s"
    )
    for name, own in turns.items():
        ratio = statistics.median(
            one.throughput / bare.throughput for one, bare in zip(own, turns["bare"], strict=True)
        )
        table.add_row(
            name,
            f"{statistics.median(each.throughput for each in own):.1f}",
            f"{ratio:.2f}",
            "" if name == "bare" else f"{statistics.median(each.rate for each in own):.1f}",
            *(
                f"{1e3 * statistics.median(percentile(each.latencies, share) for each in own):.2f}"
                for share in (0.5, 0.99)
            ),
            f"{statistics.median(each.memory for each in own) / 2**20:.0f}",
            f"{statistics.median(each.start for each in own):.1f}",
        )
    console.print(table)


def main(_: list[str]) -> None:
    """Prints the table."""
    file, console = pathlib.Path(_FILE.value).absolute(), rich.console.Console()
    if not file.exists():
        make_file(file, _PIXELS.value)
    unknown = set(_NAMES.value) - set(_ENGINES)
    require(not unknown, f"--engines must be of {', '.join(_ENGINES)}, received {', '.join(sorted(unknown))}")
    known = servers(file, _free_port(), _REPLICAS.value, _PEERS.value)
    left_out = [name for name in _NAMES.value if name not in known]
    if left_out:
        console.print(f"without {', '.join(left_out)}: --peers names no environment (see --help)")
    names = [name for name in _NAMES.value if name in known]
    turns: dict[str, list[Turn]] = {name: [] for name in ("bare", *names)}
    for number in range(ROUNDS.value):
        turns["bare"].append(measure_bare(file, _REPLICAS.value))
        # Another order each time: nobody always comes first.
        for name in names[number % len(names) :] + names[: number % len(names)] if names else []:
            port = _free_port()
            turns[name].append(measure(servers(file, port, _REPLICAS.value, _PEERS.value)[name], port))
            console.print(f"round {number + 1}: {name} {turns[name][-1].throughput:.1f} examples a second")
    show(turns, console)
    machine = describe_environment()
    console.print(
        f"{file.name}, {_REPLICAS.value} workers of one thread, {_CONNECTIONS.value} connections, "
        f"{ROUNDS.value} rounds of {_SECONDS.value:g} s, {machine['cpu']}, {machine['threads']} cores"
    )


if __name__ == "__main__":
    app.run(main)
