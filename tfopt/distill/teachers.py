"""Teachers: a Keras model, a .tflite file, several of these."""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.digest import digest
from tfopt.distill.features import Watched
from tfopt.distill.losses import Kind
from tfopt.distill.outputs import Seen, look_at, seen_from

_NOISE = 16


class Teacher:
    """What a student learns from. Nothing of it is ever trained, or changed.

    Args:
      name: what reports call it.
      seen: what was seen of its outputs, in their order.
    """

    # Whether XLA can compile it, and a graph hold it.
    in_graph = True

    def __init__(self, name: str, seen: Sequence[Seen]) -> None:
        self.name, self.seen = name, list(seen)

    def outputs(self, x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Its outputs for a batch, as it gives them, and its features."""
        raise NotImplementedError

    def logits(self, outputs: Sequence[Any], kinds: Sequence[Kind | None]) -> list[Any]:
        """The logits behind its outputs, for each of the student's; plain numbers where these are the task.

        None where the kind is None, for outputs that the student is not trained for.
        """
        return [
            None if kind is None else seen.logits(each, kind)
            for each, seen, kind in zip(outputs, self.seen, kinds, strict=True)
        ]

    @functools.cached_property
    def digest(self) -> str:
        """Differs where what it teaches may differ."""
        raise NotImplementedError

    def arrays(self) -> list[np.ndarray]:
        """Its weights, to be saved with the student."""
        return []

    def set_arrays(self, arrays: Sequence[np.ndarray]) -> None:
        """The reverse of `arrays`."""

    def get_config(self) -> dict[str, Any]:
        """What `teacher_from_config` makes the same teacher of, but for its weights."""
        raise NotImplementedError


class KerasTeacher(Teacher):
    """A Keras model, in the student's own training step."""

    def __init__(
        self,
        model: keras.Model,
        layers: Sequence[str] = (),
        examples: Any = None,
        seen: Sequence[Seen] | None = None,
        name: str = "",
    ) -> None:
        self.model, self.layers = model, list(layers)
        require(
            bool(model.built and model.weights),
            f"the teacher {model.name!r} is not built, so it has no weights yet: train it, or load its weights",
        )
        self.watched = Watched(model, layers, "teacher") if layers else None
        super().__init__(name or model.name, look_at(self._try(examples)) if seen is None else seen)

    def _try(self, examples: Any) -> Any:
        try:
            return self.model(examples, training=False)
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                f"the teacher {self.model.name!r} cannot take the student's inputs: {error}. Teacher and student see the "
                "same inputs"
            ) from error

    def outputs(self, x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Outputs as in inference, and what the layers give."""
        look = self.model if self.watched is None else self.watched
        outputs = keras.tree.flatten(look(x, training=False))
        return outputs, self.watched.features if self.watched else []

    @functools.cached_property
    def digest(self) -> str:
        """Of the config and the weights."""
        try:
            config = json.dumps(self.model.get_config(), sort_keys=True, default=str)
        except NotImplementedError:
            config = type(self.model).__name__
        return digest([np.array(config), *self.arrays()]).hex()

    def arrays(self) -> list[np.ndarray]:
        """The model's variables."""
        return [keras.ops.convert_to_numpy(each) for each in self.model.variables]

    def set_arrays(self, arrays: Sequence[np.ndarray]) -> None:
        """Sets the model's variables."""
        for variable, value in zip(self.model.variables, arrays, strict=True):
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """The model, without what it was compiled with."""
        model = keras.saving.serialize_keras_object(self.model)
        model.pop("compile_config", None)
        return {
            "model": model,
            "layers": self.layers,
            "seen": [dataclasses.astuple(each) for each in self.seen],
            "name": self.name,
        }


class TFLiteTeacher(Teacher):
    """A .tflite file, run by LiteRT beside the graph, which cannot hold it: on the CPU, and never under XLA."""

    in_graph = False

    def __init__(self, path: str | os.PathLike[str], examples: Any = None, seen: Sequence[Seen] | None = None) -> None:
        from tfopt.tflite.flatbuffer import read_tflite
        from tfopt.tflite.run import file_specs, open_interpreter

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
        from tfopt.tflite.examples import read_examples
        from tfopt.tflite.run import run_batches

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


class Ensemble(Teacher):
    """Several teachers, of whose probabilities the mean is taken; of plain numbers, where these are the task."""

    def __init__(self, members: Sequence[Teacher]) -> None:
        require(len(members) > 0, "an ensemble needs at least one teacher, received none")
        self.members = list(members)
        self.in_graph = all(each.in_graph for each in members)
        shapes = {tuple(seen.shape for seen in each.seen): each.name for each in members}
        require(len(shapes) == 1, f"the teachers of an ensemble give outputs of different shapes: {shapes}")
        super().__init__(f"{len(members)} teachers: {', '.join(each.name for each in members)}", members[0].seen)

    def outputs(self, x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The outputs of all members, one member after the other."""
        return [output for each in self.members for output in each.outputs(x)[0]], []

    def logits(self, outputs: Sequence[Any], kinds: Sequence[Kind | None]) -> list[Any]:
        """The logits of the mean."""
        size = len(kinds)
        by_member = [
            each.logits(outputs[size * index : size * index + size], kinds) for index, each in enumerate(self.members)
        ]
        return [None if kind is None else _mean(logits, kind) for *logits, kind in zip(*by_member, kinds, strict=True)]

    @functools.cached_property
    def digest(self) -> str:
        """Of the members, in any order."""
        return digest([np.array(sorted(each.digest for each in self.members))]).hex()

    def arrays(self) -> list[np.ndarray]:
        """Those of the members, one after the other."""
        return [array for each in self.members for array in each.arrays()]

    def set_arrays(self, arrays: Sequence[np.ndarray]) -> None:
        """Sets those of the members."""
        rest = list(arrays)
        for each in self.members:
            count = len(each.arrays())
            each.set_arrays(rest[:count])
            rest = rest[count:]

    def get_config(self) -> dict[str, Any]:
        """The members."""
        return {"members": [each.get_config() for each in self.members]}


def as_teacher(teacher: Any, examples: Any, layers: Sequence[str] = ()) -> Teacher:
    """A teacher of whatever can be one.

    Args:
      teacher: a built Keras model; the path of a saved one (see `tfopt.load_model`) or of a .tflite file; a list of
        these: an ensemble.
      examples: a batch of inputs, to see what the outputs are like.
      layers: names of the layers whose features are wanted; only of one Keras model.

    Raises:
      TypeError: it is something else.
      ValueError: it is not built, or has no such layers.
    """
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, keras.Model):
        return KerasTeacher(teacher, layers, examples)
    is_file = isinstance(teacher, str | os.PathLike)
    if is_file and os.fspath(teacher).endswith(".tflite"):
        _no_features(layers, "a .tflite file")
        return TFLiteTeacher(teacher, examples)
    if is_file:
        from tfopt.load import load_model

        return KerasTeacher(load_model(teacher), layers, examples, name=os.path.basename(teacher))
    if isinstance(teacher, list | tuple):
        _no_features(layers, "an ensemble")
        return Ensemble([as_teacher(each, examples) for each in teacher])
    raise TypeError(
        f"a teacher is a Keras model, the path of a saved one or of a .tflite file, or a list of these; received "
        f"{type(teacher).__module__}.{type(teacher).__name__}"
    )


def teacher_from_config(config: Mapping[str, Any]) -> Teacher:
    """The reverse of `Teacher.get_config`."""
    if "members" in config:
        return Ensemble([teacher_from_config(each) for each in config["members"]])
    seen = seen_from(config["seen"])
    if "path" in config:
        return TFLiteTeacher(config["path"], seen=seen)
    model = keras.saving.deserialize_keras_object(config["model"])
    return KerasTeacher(model, config["layers"], seen=seen, name=config["name"])


def noise(model: keras.Model) -> Any:
    """Some random inputs for a model.

    Raises:
      ValueError: the model does not tell its inputs, or they are text.
    """
    inputs = getattr(model, "inputs", None)
    require(
        bool(inputs) and all(each.dtype != "string" for each in inputs),
        f"the model {model.name!r} does not tell what its inputs are like: pass examples=, a batch of inputs",
    )
    rng = np.random.default_rng(0)
    struct = model._functional._inputs_struct if isinstance(model, keras.Sequential) else model._inputs_struct
    return keras.tree.map_structure(
        lambda each: _some(rng, tuple(8 if size is None else size for size in each.shape[1:]), each.dtype), struct
    )


def _some(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind in "biu":
        return rng.integers(0, 2, (_NOISE, *shape)).astype(dtype)
    return rng.normal(size=(_NOISE, *shape)).astype(dtype)


def _no_features(layers: Sequence[str], what: str) -> None:
    require(not layers, f"features are those of a Keras model's layers, and the teacher is {what}: leave features out")


def _mean(logits: Sequence[tf.Tensor], kind: Kind) -> tf.Tensor:
    stacked = tf.stack(logits)
    if kind == "values":
        return tf.reduce_mean(stacked, 0)
    if kind == "softmax":
        return tf.reduce_logsumexp(tf.nn.log_softmax(stacked), 0)
    return tf.reduce_logsumexp(tf.math.log_sigmoid(stacked), 0) - tf.reduce_logsumexp(tf.math.log_sigmoid(-stacked), 0)
