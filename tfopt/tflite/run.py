"""Runs a .tflite file over arrays."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfopt.config import require
from tfopt.tflite.examples import InputSpec, read_examples
from tfopt.tflite.flatbuffer import FlatBuffer, read_tflite
from tfopt.tflite.quiet import quiet

# Examples a call, where the file leaves its batch size open.
DYNAMIC_BATCH = 32


def predict_tflite(
    path: str | os.PathLike[str],
    x: Any,
    use_xnnpack: bool = True,
    threads: int = 1,
    raw: bool = False,
) -> Any:
    """Runs a .tflite file on examples.

    A file with a static batch size is called with batches of just that size, the last one filled up: resizing
    it would be faster for some files, break others, and change float results.

    Args:
      path: the file.
      x: real values, shape (examples, …) as for the Keras model; for several inputs a dict by name, or a
        tuple in the file's order. A batched `tf.data.Dataset` works too. Quantized by the file's parameters.
      use_xnnpack: run on XNNPACK as phones do, else on LiteRT's built-in kernels.
      threads: at least 1.
      raw: give the integers of quantized outputs as they are.

    Returns:
      float32 outputs of shape (examples, …), dequantized by the file's parameters unless `raw`; for several
      outputs a dict by name.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, needs the Flex delegate, or does not fit `x`.

    >>> import keras, tempfile, tfopt.tflite.export as export
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "m.tflite")
    ...     _ = export.export_tflite(model, path)
    ...     predict_tflite(path, np.ones((5, 4))).shape
    (5, 3)
    """
    require(threads >= 1, f"threads must be at least 1, received {threads!r}")
    file = read_tflite(path)
    interpreter = open_interpreter(file, use_xnnpack, threads)
    inputs = read_examples(x, file_specs(file), sys.maxsize, "test", "x").inputs
    results = file.outputs
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in results}
    for size in run_batches(interpreter, file, inputs):
        for name, tensor in results.items():
            values = interpreter.get_tensor(tensor.index)
            require(
                values.ndim > 0 and len(values) >= size,
                f"the output {name!r} of {file.path} has shape {values.shape}, no axis for the examples",
            )
            outputs[name].append(values[:size])
    joined = {name: np.concatenate(parts) for name, parts in outputs.items()}
    if not raw:
        joined = {name: results[name].dequantize(values) for name, values in joined.items()}
    return joined if len(joined) > 1 else next(iter(joined.values()))


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


def check_runs(path: str | os.PathLike[str]) -> None:
    """Raises a RuntimeError where LiteRT reads a file and cannot prepare it to run."""
    file = read_tflite(path)
    if file.flex_ops or file.custom_ops:
        return
    try:
        with quiet():
            open_interpreter(file, use_xnnpack=True).allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"the converter wrote a file that LiteRT cannot run: {str(error).strip(' .')}. A weight or activation "
            "range far from the others is a common cause: train the model, or try another quantization"
        ) from error


def file_specs(file: FlatBuffer) -> list[InputSpec]:
    """The file's inputs as they are fed before quantization."""
    return [
        InputSpec(
            name,
            tuple(None if size < 0 else size for size in tensor.shape[1:]),
            tensor.dtype if tensor.quantization is None else "float32",
        )
        for name, tensor in file.inputs.items()
    ]


def run_batches(interpreter: Interpreter, file: FlatBuffer, inputs: dict[str, np.ndarray]) -> Iterator[int]:
    """Invokes the file on batch after batch; after each, gives how many examples of the outputs count."""
    count = len(next(iter(inputs.values())))
    tensors = file.inputs
    static = next(iter(tensors.values())).shape[0]
    batch = static if static > 0 else DYNAMIC_BATCH
    quantized = {name: tensor.quantize(inputs[name]) for name, tensor in tensors.items()}
    allocated: list[tuple[int, ...]] = []
    for start in range(0, count, batch):
        size = min(batch, count - start)
        # A static batch is always full: its last example is repeated.
        rows = np.minimum(np.arange(start, start + (batch if static > 0 else size)), count - 1)
        chunk = {name: values[rows] for name, values in quantized.items()}
        shapes = [values.shape for values in chunk.values()]
        if shapes != allocated:
            for name, tensor in tensors.items():
                if -1 in tensor.shape:
                    interpreter.resize_tensor_input(tensor.index, chunk[name].shape)
            with quiet():
                interpreter.allocate_tensors()
            allocated = shapes
        for name, tensor in tensors.items():
            interpreter.set_tensor(tensor.index, chunk[name])
        interpreter.invoke()
        yield size
