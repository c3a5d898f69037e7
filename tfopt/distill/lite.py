"""A .tflite file as a teacher."""

import dataclasses
import functools
import os
import pathlib
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.data.digest import digest
from tfopt.distill.outputs import Seen, look_at
from tfopt.distill.teacher import Teacher
from tfopt.tflite.examples import read_examples
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.interpreter import open_interpreter, run_batches
from tfopt.tflite.run import file_specs


class TFLiteTeacher(Teacher):
    """A .tflite file, run by LiteRT beside the graph, which cannot hold it: on the CPU, and never under XLA."""

    in_graph = False

    def __init__(self, path: str | os.PathLike[str], examples: Any, seen: Sequence[Seen] | None = None) -> None:
        self.path = os.path.abspath(path)
        self._file = read_tflite(path)
        self._specs = file_specs(self._file)
        self._interpreter, self._lock = open_interpreter(self._file, use_xnnpack=True), threading.Lock()
        if seen is None:
            seen = look_at(self._run(*map(np.asarray, self._flat(examples))))
        super().__init__(os.path.basename(path), seen)

    def outputs(self, x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Outputs as real numbers; there are no features."""
        results = list(self._file.outputs.values())
        made = tf.numpy_function(self._run, self._flat(x), [tf.float32] * len(results), stateful=False)
        for each, tensor in zip(made, results, strict=True):
            each.set_shape((None, *(None if size < 0 else size for size in tensor.shape[1:])))
        return made, []

    @functools.cached_property
    def digest(self) -> str:
        """Of the file's bytes."""
        return digest([np.frombuffer(pathlib.Path(self.path).read_bytes(), np.uint8)]).hex()

    def get_config(self) -> dict[str, Any]:
        """The file's place."""
        return {"path": self.path, "seen": [dataclasses.astuple(each) for each in self.seen]}

    def _flat(self, x: Any) -> list[Any]:
        """The inputs in the file's order."""
        if isinstance(x, Mapping) and set(x) >= {each.name for each in self._specs}:
            return [x[each.name] for each in self._specs]
        return keras.tree.flatten(x)

    def _run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x = inputs[0] if len(inputs) == 1 else tuple(inputs)
        known = read_examples(x, self._specs, sys.maxsize, "train", f"the teacher's input ({self.path})").inputs
        results = self._file.outputs
        parts: list[list[np.ndarray]] = [[] for _ in results]
        # Replicas ask at the same time.
        with self._lock:
            for size in run_batches(self._interpreter, self._file, known):
                for part, tensor in zip(parts, results.values(), strict=True):
                    part.append(tensor.dequantize(self._interpreter.get_tensor(tensor.index)[:size]))
        return [np.concatenate(part).astype("float32") for part in parts]
