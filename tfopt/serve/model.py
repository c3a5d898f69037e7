"""A saved model of any kind as one function of arrays. Imports TensorFlow for Keras models and SavedModels only."""

import abc
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from tfopt.config import require
from tfopt.serve.description import Description, TensorInfo
from tfopt.tflite.flatbuffer import FlatBuffer, Tensor, read_tflite
from tfopt.tflite.interpreter import Batches, open_interpreter
from tfopt.tflite.metadata import read_metadata

SAVED_MODEL = "saved_model.pb"


class Model(abc.ABC):
    """A loaded model; not for several threads at once.

    Args:
      description: what it takes and gives.
    """

    def __init__(self, description: Description) -> None:
        self.description = description

    def predict(self, inputs: Mapping[str, np.ndarray], raw: bool = False) -> dict[str, np.ndarray]:
        """Computes the outputs of some examples, for LiteRT files the same bits as `predict_tflite`.

        Args:
          inputs: by name, each of shape (examples, …), in the type that `description` tells: float32 for a quantized
            input, which is quantized by the file's parameters. Its stored type, such as int8, is taken as it is.
          raw: give quantized outputs as they are stored, else as float32.

        Returns:
          Outputs by name, each of shape (examples, …).

        Raises:
          ValueError: the inputs do not fit the model; says how.
          RuntimeError: the model cannot compute them; the message is the runtime's.
        """
        self.description.check(inputs)
        return self._predict(inputs, raw)

    @abc.abstractmethod
    def _predict(self, inputs: Mapping[str, np.ndarray], raw: bool) -> dict[str, np.ndarray]: ...


class LiteModel(Model):
    """A .tflite file in LiteRT's interpreter, on XNNPACK, called as `predict_tflite` does."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.file = read_tflite(path)
        super().__init__(describe(self.file))
        self._batches = Batches(open_interpreter(self.file, use_xnnpack=True, threads=threads), self.file)

    def _predict(self, inputs: Mapping[str, np.ndarray], raw: bool) -> dict[str, np.ndarray]:
        stored = {
            info.name: _stored(self.file.inputs[info.name], info, inputs[info.name]) for info in self.description.inputs
        }
        results = self.file.outputs
        if self.description.batch == 0:
            self._batches.invoke(stored)
            outputs = {name: self._output(tensor) for name, tensor in results.items()}
        else:
            parts: dict[str, list[np.ndarray]] = {name: [] for name in results}
            for size in self._batches.run(stored):
                for name, tensor in results.items():
                    values = self._output(tensor)
                    if values.ndim == 0 or len(values) < size:
                        raise RuntimeError(f"the output {name!r} has shape {values.shape} for {size} examples")
                    parts[name].append(values[:size])
            outputs = {name: each[0] if len(each) == 1 else np.concatenate(each) for name, each in parts.items()}
        return outputs if raw else {name: results[name].dequantize(values) for name, values in outputs.items()}

    def _output(self, tensor: Tensor) -> np.ndarray:
        return self._batches.interpreter.get_tensor(tensor.index)


def _stored(tensor: Tensor, info: TensorInfo, values: np.ndarray) -> np.ndarray:
    is_real = info.is_quantized and values.dtype.name == info.dtype
    return tensor.quantize(values) if is_real else values


def describe(file: FlatBuffer) -> Description:
    """What a .tflite file takes and gives."""
    inputs = tuple(_info(name, tensor) for name, tensor in file.inputs.items())
    outputs = tuple(_info(name, tensor) for name, tensor in file.outputs.items())
    return Description("litert", inputs, outputs, batch_axis(inputs, outputs), read_metadata(file))


def _info(name: str, tensor: Tensor) -> TensorInfo:
    found = tensor.quantization
    if found is None:
        return TensorInfo(name, tensor.shape, tensor.dtype, tensor.dtype)
    one = found.scales.size == 1
    scale, zero = (float(found.scales[0]), int(found.zero_points[0])) if one else (None, None)
    return TensorInfo(name, tensor.shape, "float32", tensor.dtype, scale, zero)


def batch_axis(inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]) -> int:
    """The size of the first axis where it is one of examples: all inputs and outputs have it."""
    first = [info.shape[:1] for info in inputs]
    if set(first) == {(-1,)}:
        return -1 if all(info.shape for info in outputs) else 0
    alike = set(first) | {info.shape[:1] for info in outputs}
    return first[0][0] if len(alike) == 1 and () not in alike else 0


def load(path: str | os.PathLike[str], threads: int = 1) -> Model:
    """Loads a .tflite file, a .keras or .h5 file, or the folder of a SavedModel.

    No Python code that a file brings along is run, and a SavedModel that touches files is refused.

    Args:
      path: of the file or folder; the content decides what it is.
      threads: that one prediction may use, at least 1.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: it is damaged, of another kind, or refused; says why.

    >>> import keras, tempfile, tfopt
    >>> net = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "m.tflite")
    ...     _ = tfopt.export_tflite(net, file)
    ...     model = load(file)
    >>> model.predict({"x": np.ones((5, 4), "float32")})["y"].shape
    (5, 3)
    """
    require(threads >= 1, f"threads must be at least 1, received {threads!r}")
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}: give a .tflite or .keras file, or a SavedModel")
    if path.is_file() and path.suffix not in (".keras", ".h5"):
        return LiteModel(path, threads)
    from tfopt.serve.tensorflow_model import KerasModel, SavedModel

    return SavedModel(path, threads) if (path / SAVED_MODEL).is_file() else KerasModel(path, threads)
