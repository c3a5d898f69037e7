"""LiteRT's interpreter, fed batch by batch; imports neither TensorFlow nor Keras."""

from collections.abc import Iterator, Mapping

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfopt.config import require
from tfopt.tflite.flatbuffer import FlatBuffer
from tfopt.tflite.quiet import quiet

# Examples a call, where the file leaves its batch size open.
DYNAMIC_BATCH = 32


def open_interpreter(file: FlatBuffer, use_xnnpack: bool, threads: int = 1, preserve_all: bool = False) -> Interpreter:
    """Makes LiteRT's interpreter for a file; with `preserve_all` every tensor can be read after a run."""
    needed = file.flex_ops or file.custom_ops
    require(
        not needed,
        f"{file.path} needs {', '.join(needed)}, which LiteRT's own runtime does not have: export the model "
        "without Flex and custom ops",
    )
    resolver = OpResolverType.AUTO if use_xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with quiet():
        return Interpreter(
            model_path=file.path,
            num_threads=threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=preserve_all,
        )


class Batches:
    """Runs a file over examples in the batches that it takes, with one interpreter.

    Args:
      interpreter: of the file.
      file: the file.
    """

    def __init__(self, interpreter: Interpreter, file: FlatBuffer) -> None:
        self.interpreter, self.tensors = interpreter, file.inputs
        first = next(iter(self.tensors.values())).shape
        self.static = first[0] if first and first[0] > 0 else 0
        self._allocated: list[tuple[int, ...]] = []

    def run(self, stored: Mapping[str, np.ndarray]) -> Iterator[int]:
        """Invokes the file on batch after batch; after each, gives how many examples of the outputs count.

        Args:
          stored: examples by input name, as the file stores them: integers where it is quantized.
        """
        count = len(next(iter(stored.values())))
        batch = self.static or DYNAMIC_BATCH
        for start in range(0, count, batch):
            size = min(batch, count - start)
            chunk = {name: values[start : start + size] for name, values in stored.items()}
            if self.static and size < batch:
                # A static batch is always full: its last example is repeated.
                rows = np.minimum(np.arange(batch), size - 1)
                chunk = {name: values[rows] for name, values in chunk.items()}
            self.invoke(chunk)
            yield size

    def invoke(self, chunk: Mapping[str, np.ndarray]) -> None:
        """Invokes the file once; dynamic axes take the size that the arrays have."""
        shapes = [values.shape for values in chunk.values()]
        if shapes != self._allocated:
            # Where this fails, it begins anew with the next one.
            self._allocated = []
            for name, tensor in self.tensors.items():
                if -1 in tensor.shape:
                    self.interpreter.resize_tensor_input(tensor.index, chunk[name].shape)
            with quiet():
                self.interpreter.allocate_tensors()
            self._allocated = shapes
        for name, tensor in self.tensors.items():
            self.interpreter.set_tensor(tensor.index, chunk[name])
        self.interpreter.invoke()


def run_batches(interpreter: Interpreter, file: FlatBuffer, inputs: dict[str, np.ndarray]) -> Iterator[int]:
    """As `Batches.run`, once, with real values, which are quantized by the file's parameters."""
    stored = {name: tensor.quantize(inputs[name]) for name, tensor in file.inputs.items()}
    return Batches(interpreter, file).run(stored)
