"""The loop that servers are measured against: a LiteRT interpreter that is fed the same tensor again and again.

Run as a script, with the path of a file and of the tensor's bytes; it waits for a line, loops for so many seconds, and
prints how many runs it has done and the times of each. NumPy and LiteRT only, so that the peers' environments run it.
"""

import json
import pathlib
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


class Bare:
    """A file in an interpreter on one thread, from bytes to bytes."""

    def __init__(self, path: str) -> None:
        self._interpreter = Interpreter(model_path=path, num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,), (self._output,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()

    def run(self, content: bytes) -> bytes:
        """What the file makes of the bytes of its input."""
        self._interpreter.set_tensor(
            self._input["index"], np.frombuffer(content, self._input["dtype"]).reshape(self._input["shape"])
        )
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output["index"]).tobytes()


def main() -> None:
    """Loops."""
    bare, content = Bare(sys.argv[1]), pathlib.Path(sys.argv[2]).read_bytes()
    bare.run(content)
    print("ready", flush=True)
    seconds = float(sys.stdin.readline())
    started = before = time.perf_counter()
    times = []
    while before - started < seconds:
        bare.run(content)
        now = time.perf_counter()
        times.append(now - before)
        before = now
    print(json.dumps({"seconds": before - started, "times": times}), flush=True)


if __name__ == "__main__":
    main()
