"""Small models as files of 8 or 16 bits, by ranges measured on data."""

import keras
import numpy as np

from tfopt.tflite.export import export_tflite
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.interpreter import open_interpreter, run_batches
from tfopt.tflite.quantizer import quantize_file
from tfopt.tflite.run import predict_tflite


def write(folder, content):
    (folder / "m.tflite").write_bytes(content)
    return str(folder / "m.tflite")


def measured(path, x):
    """Ranges from the data, as a calibration would find them."""
    file = read_tflite(path)
    graph = file.graphs[0]
    interpreter = open_interpreter(file, use_xnnpack=False, preserve_all=True)
    read = {i for operator in graph.operators for i in operator.inputs} | set(graph.outputs)
    found = {}
    for _ in run_batches(interpreter, file, {name: x for name in file.inputs}):
        for tensor in graph.tensors:
            if tensor.data is None and tensor.is_float and tensor.index in read:
                values = interpreter.get_tensor(tensor.index)
                low, high = found.get(tensor.name, (0.0, 0.01))
                found[tensor.name] = min(low, float(values.min())), max(high, float(values.max()))
    return found


def functional(build, shape=(6, 6, 4)):
    inputs = keras.Input(shape, name="x")
    return keras.Model(inputs, build(inputs), name="functional")


def quantized(model, folder, activation_bits=16, count=8):
    """The path of a model's file by measured ranges, and its examples."""
    x = np.random.default_rng(0).normal(size=(count, *model.inputs[0].shape[1:])).astype("float32")
    export_tflite(model, folder / "float.tflite")
    ranges = measured(folder / "float.tflite", x)
    content = quantize_file(folder / "float.tflite", ranges, activation_bits=activation_bits)
    return write(folder, content), x


def largest_error(model, path, x, **arguments):
    expected = np.asarray(model(x))
    return np.abs(predict_tflite(path, x, **arguments) - expected).max() / np.abs(expected).max()
