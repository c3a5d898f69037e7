"""A teacher of whatever can be one."""

import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfopt.config import require
from tfopt.distill.outputs import seen_from
from tfopt.distill.records import Recorded, read_record
from tfopt.distill.teacher import Ensemble, KerasTeacher, Teacher

_NOISE = 16


def as_teacher(teacher: Any, examples: Any, layers: Sequence[str] = ()) -> Teacher:
    """A teacher of whatever can be one.

    Args:
      teacher: a built Keras model; the path of a saved one (see `tfopt.load_model`), of a .tflite file or of what
        `record` wrote; a list of models and files: an ensemble.
      examples: a batch of inputs, to see what the outputs are like.
      layers: names of the layers whose features are wanted; only of one Keras model.

    Raises:
      TypeError: it is something else.
      ValueError: it is not built, or has no such layers.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")], name="big")
    >>> teacher = as_teacher(model, np.ones((1, 4)))
    >>> teacher.name, teacher.seen[0].is_distribution
    ('big', True)
    """
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, keras.Model):
        return KerasTeacher(teacher, layers, examples)
    if isinstance(teacher, list | tuple):
        _no_features(layers, "an ensemble")
        return Ensemble([as_teacher(each, examples) for each in teacher])
    if not isinstance(teacher, str | os.PathLike):
        raise TypeError(
            f"a teacher is a Keras model, the path of a saved one or of a .tflite file, or a list of these; received "
            f"{type(teacher).__module__}.{type(teacher).__name__}"
        )
    suffix = pathlib.Path(teacher).suffix
    if suffix == ".tflite":
        from tfopt.distill.lite import TFLiteTeacher

        _no_features(layers, "a .tflite file")
        return TFLiteTeacher(teacher, examples)
    if suffix == ".npz":
        _no_features(layers, "a file of outputs")
        return Recorded(read_record(teacher))
    return KerasTeacher(_load(teacher), layers, examples, name=os.path.basename(teacher))


def teacher_from_config(config: Mapping[str, Any]) -> Teacher:
    """The reverse of `Teacher.get_config`."""
    if "members" in config:
        return Ensemble([teacher_from_config(each) for each in config["members"]])
    if "record" in config:
        return Recorded(read_record(config["record"]))
    seen = seen_from(config["seen"])
    if "path" in config:
        from tfopt.distill.lite import TFLiteTeacher

        return TFLiteTeacher(config["path"], None, seen)
    model = keras.saving.deserialize_keras_object(config["model"])
    return KerasTeacher(model, config["layers"], seen=seen, name=config["name"])


def noise(model: keras.Model) -> Any:
    """Some random inputs for a model.

    Raises:
      ValueError: the model does not tell its inputs, or they are text.
    """
    inputs = getattr(model, "inputs", None) or []
    require(
        bool(inputs) and all(each.dtype != "string" for each in inputs),
        f"the model {model.name!r} does not tell what its inputs are like: pass examples=, a batch of inputs",
    )
    rng = np.random.default_rng(0)
    struct = model._functional._inputs_struct if isinstance(model, keras.Sequential) else model._inputs_struct
    return keras.tree.map_structure(
        lambda each: _some(rng, tuple(8 if size is None else size for size in each.shape[1:]), each.dtype), struct
    )


def _load(path: str | os.PathLike[str]) -> keras.Model:
    from tfopt.load import load_model

    with warnings.catch_warnings():
        # A teacher is not trained: what it was compiled with may be lost.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        warnings.filterwarnings("ignore", ".*is loaded uncompiled")
        return load_model(path)


def _some(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind in "biu":
        return rng.integers(0, 2, (_NOISE, *shape)).astype(dtype)
    return rng.normal(size=(_NOISE, *shape)).astype(dtype)


def _no_features(layers: Sequence[str], what: str) -> None:
    require(not layers, f"features are those of a Keras model's layers, and the teacher is {what}: leave features out")
