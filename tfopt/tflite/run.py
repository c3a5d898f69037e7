"""Runs a .tflite file over arrays."""

import os
import sys
from typing import Any

import numpy as np

from tfopt.config import require
from tfopt.tflite.examples import InputSpec, read_examples
from tfopt.tflite.flatbuffer import FlatBuffer, read_tflite
from tfopt.tflite.interpreter import open_interpreter, run_batches
from tfopt.tflite.quiet import quiet


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
