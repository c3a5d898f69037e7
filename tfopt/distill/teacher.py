"""Teachers: a Keras model, and several as one."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data.digest import digest
from tfopt.distill.layers import Shape, Watched
from tfopt.distill.losses import Kind
from tfopt.distill.outputs import Seen, look_at


class Teacher:
    """What a student learns from. Nothing of it is ever trained, or changed.

    Args:
      name: what reports call it.
      seen: what was seen of its outputs, in their order.
    """

    # Whether TensorFlow runs it.
    in_graph = True
    # Of the features that are wanted of it.
    shapes: Sequence[Shape] = ()
    # Whether it can be asked: what was recorded is known for some examples only.
    is_live = True

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

    def check_compiled(self) -> None:
        """Raises where XLA cannot compile it."""
        require(
            self.in_graph,
            f"jit_compile=True cannot compile the teacher {self.name!r}, of which LiteRT runs a .tflite file: leave it "
            "out, or give cache= a folder for its outputs",
        )

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
        self._watched = Watched(model, layers, "teacher") if layers else None
        self.shapes = self._watched.shapes if self._watched else ()
        super().__init__(name or model.name, look_at(self._try(examples)) if seen is None else seen)

    def _try(self, examples: Any) -> Any:
        try:
            return self.model(examples, training=False)
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                f"the teacher {self.model.name!r} cannot take the inputs of the student, which both are given: {error}"
            ) from error

    def outputs(self, x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Outputs as in inference, and what the layers give."""
        look = self.model if self._watched is None else self._watched
        outputs = keras.tree.flatten(look(x, training=False))
        return outputs, self._watched.features if self._watched else []

    @functools.cached_property
    def digest(self) -> str:
        """Of the config and the weights."""
        try:
            config = json.dumps(_uncompiled(self.model.get_config()), sort_keys=True, default=str)
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


def _uncompiled(config: Any) -> Any:
    """A configuration without what models inside were compiled with: a mere evaluation compiles them."""
    if isinstance(config, Mapping):
        return {key: _uncompiled(each) for key, each in config.items() if key != "compile_config"}
    return [_uncompiled(each) for each in config] if isinstance(config, list | tuple) else config


class Ensemble(Teacher):
    """Several teachers, of whose probabilities the mean is taken; of plain numbers, where these are the task."""

    def __init__(self, members: Sequence[Teacher]) -> None:
        require(len(members) > 0, "an ensemble needs at least one teacher, received none")
        unfit = [each.name for each in members if isinstance(each, Ensemble) or not each.is_live]
        require(not unfit, f"an ensemble is one of models and .tflite files, received {', '.join(unfit)} in it")
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
        return logits_of_mean(self.members, outputs, kinds)

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


def logits_of_mean(members: Sequence[Teacher], outputs: Sequence[Any], kinds: Sequence[Kind | None]) -> list[Any]:
    """The logits of the mean of several teachers' probabilities; of plain numbers, their mean.

    Args:
      members: the teachers.
      outputs: theirs, one member after the other.
      kinds: of the outputs of each; None for one that is not wanted.
    """
    size = len(kinds)
    parts = [outputs[size * index : size * index + size] for index in range(len(members))]
    by_member = [member.logits(part, kinds) for member, part in zip(members, parts, strict=True)]
    return [None if kind is None else _mean(logits, kind) for *logits, kind in zip(*by_member, kinds, strict=True)]


def _mean(logits: Sequence[tf.Tensor], kind: Kind) -> tf.Tensor:
    stacked = tf.stack(logits)
    if kind == "values":
        return tf.reduce_mean(stacked, 0)
    if kind == "softmax":
        return tf.reduce_logsumexp(tf.nn.log_softmax(stacked), 0)
    return tf.reduce_logsumexp(tf.math.log_sigmoid(stacked), 0) - tf.reduce_logsumexp(tf.math.log_sigmoid(-stacked), 0)
