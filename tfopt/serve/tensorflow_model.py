"""Keras models and SavedModels, in TensorFlow."""

import abc
import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.load import load_model
from tfopt.load.saved_model import side_effects
from tfopt.serve.description import SIGNATURE, STRING, Description, TensorInfo
from tfopt.serve.model import Model, batch_axis
from tfopt.tflite.model import call_named, input_specs, static_batch
from tfopt.tflite.quiet import quiet


def _limit(threads: int) -> None:
    # TensorFlow takes it before its first operation only; in a worker of the server this comes first.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


class _TensorFlowModel(Model):
    """A function of tensors by name; one with a fixed batch gets it full, its last example repeated."""

    def _predict(self, inputs: Mapping[str, np.ndarray], raw: bool) -> dict[str, np.ndarray]:
        batch = self.description.batch
        if batch < 1:
            return self._run(inputs)
        count, parts = len(next(iter(inputs.values()))), []
        for start in range(0, count, batch):
            rows = np.minimum(np.arange(start, start + batch), count - 1)
            parts.append(self._run({name: values[rows] for name, values in inputs.items()}))
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

    # Of the function's inputs.
    _dtypes: dict[str, tf.DType]

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: tf.cast(tf.constant(values), self._dtypes[name]) for name, values in inputs.items()}
        try:
            outputs = self._call(tensors)
        except tf.errors.OpError as error:
            raise RuntimeError(_reason(error.message)) from error
        return {name: _wide(each).numpy() for name, each in outputs.items()}

    @abc.abstractmethod
    def _call(self, tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]: ...


class KerasModel(_TensorFlowModel):
    """A Keras model, called for inference."""

    def __init__(self, path: pathlib.Path, threads: int = 1) -> None:
        _limit(threads)
        with quiet():
            model = load_model(path)
        batch = static_batch(model)
        signature = [tf.TensorSpec((batch, *spec.shape), spec.dtype, spec.name) for spec in input_specs(model)]
        self._function = tf.function(
            lambda *tensors: call_named(model, list(tensors)), input_signature=signature, autograph=False
        )
        self._dtypes = {each.name: each.dtype for each in signature}
        outputs = self._function.get_concrete_function().structured_outputs
        inputs = tuple(_info(each.name, each) for each in signature)
        results = tuple(_info(name, each) for name, each in outputs.items())
        super().__init__(Description("keras", inputs, results, batch_axis(inputs, results)))

    def _call(self, tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self._function(*(tensors[info.name] for info in self.description.inputs))


class SavedModel(_TensorFlowModel):
    """The signature "serving_default" of a SavedModel, or its only one."""

    def __init__(self, path: pathlib.Path, threads: int = 1) -> None:
        found = side_effects(path)
        require(
            not found,
            f"{path}: its graph has the operations {', '.join(sorted(found))}, which touch files or call Python; such "
            "models are not served",
        )
        _limit(threads)
        with quiet():
            self._loaded = tf.saved_model.load(str(path))
        signatures = dict(self._loaded.signatures)
        require(
            SIGNATURE in signatures or len(signatures) == 1,
            f"{path} has the signatures {', '.join(signatures) or 'none'}, expected {SIGNATURE!r}: save it with "
            "model.export, or with tf.saved_model.save(..., signatures=...)",
        )
        name = SIGNATURE if SIGNATURE in signatures else next(iter(signatures))
        self._function = signatures[name]
        given = self._function.structured_input_signature[1]
        self._dtypes = {name: each.dtype for name, each in given.items()}
        inputs = tuple(_info(name, each) for name, each in given.items())
        results = tuple(_info(name, each) for name, each in self._function.structured_outputs.items())
        super().__init__(Description("saved_model", inputs, results, batch_axis(inputs, results), {}, name))

    def _call(self, tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self._function(**tensors)


def _info(name: str, spec: Any) -> TensorInfo:
    # Of an unknown rank nothing can be said but that there may be examples.
    shape = (-1,) if spec.shape.rank is None else tuple(-1 if size is None else size for size in spec.shape)
    # NumPy has no bfloat16, and float32 holds all of its values.
    dtype = {tf.string: STRING, tf.bfloat16: "float32"}.get(spec.dtype, spec.dtype.name)
    return TensorInfo(name, shape, dtype, dtype)


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor


def _reason(message: str) -> str:
    """What went wrong, out of TensorFlow's message, which may begin with where and end with the node.

    >>> _reason("Graph execution error:\\n\\nDetected at node G\\nindices[0] = 7 is not in [0, 1)\\n\\t [[{{node G}}]]")
    'indices[0] = 7 is not in [0, 1)'
    """
    lines = [line.strip() for line in message.partition("\n\t [[")[0].splitlines() if line.strip()]
    return lines[-1] if lines else message.strip()
