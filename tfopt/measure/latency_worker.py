"""Times one .tflite file; run as a script, one process a file, so that no other interpreter disturbs it.

Imports NumPy and LiteRT only, to start fast. Reads one JSON object a line: first {"path", "threads", "seed", "cpu"},
with the number of the CPU to run on or null, then {"runs": n} as often as wanted. Answers each with a line:
{"runtime"}, then {"milliseconds": [...]}; or {"error"}, and ends.
"""

import importlib.metadata
import json
import os
import sys
import time
from typing import TextIO

import numpy as np


def random_input(detail: dict, generator: np.random.Generator) -> np.ndarray:
    """Random values over the range of the input's dtype; float ones in [0, 1), 1 for dynamic axes."""
    shape, dtype = detail["shape"], np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return generator.random(shape).astype(dtype)
    if dtype.kind == "b":
        return generator.random(shape) < 0.5
    limits = np.iinfo(dtype)
    if detail["quantization_parameters"]["scales"].size:
        return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    # Unquantized integers are indices, whose range the file does not tell; 0 and 1 are within any table.
    return generator.integers(0, 2, shape, dtype)


def main(requests: TextIO, answers: TextIO) -> None:
    """Answers the requests one by one."""
    from ai_edge_litert.interpreter import Interpreter

    setup = json.loads(requests.readline())
    if setup["cpu"] is not None:
        os.sched_setaffinity(0, {setup["cpu"]})
    interpreter = Interpreter(model_path=setup["path"], num_threads=setup["threads"])
    interpreter.allocate_tensors()
    generator = np.random.default_rng(setup["seed"])
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], random_input(detail, generator))
    # LiteRT's interpreter applies XNNPACK by default and shows it as an operator of the graph.
    delegated = any(operator["op_name"] == "DELEGATE" for operator in interpreter._get_ops_details())
    version = importlib.metadata.version("ai-edge-litert")
    runtime = f"ai-edge-litert {version}, {'XNNPACK' if delegated else 'built-in kernels'}"
    print(json.dumps({"runtime": runtime}), file=answers, flush=True)
    for line in requests:
        milliseconds = []
        for _ in range(json.loads(line)["runs"]):
            start = time.perf_counter_ns()
            interpreter.invoke()
            milliseconds.append((time.perf_counter_ns() - start) / 1e6)
        print(json.dumps({"milliseconds": milliseconds}), file=answers, flush=True)


if __name__ == "__main__":
    # LiteRT prints to stdout; the answers get a channel of their own, and its chatter goes to stderr.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        main(sys.stdin, channel)
    except Exception as error:  # noqa: BLE001 - handed on to the parent process, which raises it
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=channel, flush=True)
        sys.exit(1)
