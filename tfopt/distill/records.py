"""What a teacher gave for a split, on disk: computed once, and brought along by the training batches."""

import dataclasses
import functools
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfopt.config import require
from tfopt.data import Data
from tfopt.data.digest import digest
from tfopt.distill.losses import Kind
from tfopt.distill.outputs import seen_from
from tfopt.distill.teacher import Ensemble, Teacher, logits_of_mean
from tfopt.files import atomic_path

_BATCH = 256
AUGMENTED = (
    "outputs that are kept are those of the images as they are, and the data are augmented anew in each epoch: leave "
    "cache out, so that the teacher sees what the student sees, or leave the augmentation out"
)


class Taught(NamedTuple):
    """Inputs, with the outputs that a teacher gave for them earlier."""

    inputs: Any
    outputs: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """The outputs of a teacher for every example of a split, in the split's order.

    Args:
      path: of the file.
      outputs: each of shape (examples, …), as the teacher gave them.
      about: digests of "teacher" and "data", the "split", the teacher's "name", and what was "seen" of the outputs of
        each of its members.
    """

    path: pathlib.Path
    outputs: tuple[np.ndarray, ...]
    about: Mapping[str, Any]


def record(teacher: Teacher, data: Data, folder: str | os.PathLike[str], split: Any = "train") -> Record:
    """The teacher's outputs for a split, from the folder where they are there, else computed and written there.

    They are found by the digests of the teacher and of every input of the split, as models receive it, and by its name:
    another teacher, another set or another split have a file of their own.

    Args:
      teacher: see `as_teacher`.
      data: whose examples it is asked about; they must not be augmented to be joined with the outputs.
      folder: where the file is, or will be.
      split: "train", "validation" or "test".

    Raises:
      ValueError: the file is damaged.

    >>> import tempfile
    >>> from tfopt.data import from_arrays
    >>> from tfopt.distill import as_teacher
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> data = from_arrays((np.ones((20, 4), "float32"), np.arange(20) % 2), batch_size=8)
    >>> known = record(as_teacher(model, np.ones((1, 4))), data, tempfile.mkdtemp())
    >>> [each.shape for each in known.outputs]
    [(16, 2)]
    >>> inputs, labels = next(iter(join(data, known).train))
    >>> inputs.inputs.shape, inputs.outputs[0].shape
    (TensorShape([8, 4]), TensorShape([8, 2]))
    """
    key = digest([np.array([teacher.digest, data_digest(data, split), split])]).hex()[:16]
    path = pathlib.Path(folder).expanduser() / f"{data.name}-{split}-{key}.npz"
    if path.exists():
        logging.info("the outputs of the teacher %s for the %s split are read from %s", teacher.name, split, path)
        return read_record(path)
    logging.info("the teacher %s is run on the %s split once, and its outputs kept in %s", teacher.name, split, path)
    run = tf.function(lambda x: teacher.outputs(x)[0], reduce_retracing=True)
    rows = [[each.numpy() for each in run(batch[0])] for batch in data.batches(split, _BATCH)]
    outputs = tuple(np.concatenate(each) for each in zip(*rows, strict=True))
    members = teacher.members if isinstance(teacher, Ensemble) else [teacher]
    about = {
        "teacher": teacher.digest,
        "data": data_digest(data, split),
        "split": split,
        "name": teacher.name,
        "seen": [[dataclasses.astuple(each) for each in member.seen] for member in members],
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        arrays: dict[str, Any] = {f"output{index}": each for index, each in enumerate(outputs)}
        arrays["about"] = np.array(json.dumps(about))
        np.savez(file, **arrays)
    return Record(path, outputs, about)


def join(data: Data, known: Record) -> Data:
    """The same data, whose training batches bring the outputs along: their inputs are `Taught`.

    Outputs go with examples by their place in the training split, before it is shuffled.

    Raises:
      ValueError: the record is of other data or of another split, or the data are augmented.
    """
    require(
        not data.augment,
        AUGMENTED,
    )
    mine = {"data": data_digest(data, "train"), "split": "train"}
    found = {key: known.about[key] for key in mine}
    require(
        found == mine,
        f"{known.path} was recorded of {found}, and is asked for {mine}: outputs go with the examples that they "
        "were made of",
    )
    outputs = tf.data.Dataset.from_tensor_slices(known.outputs)
    with_outputs = tf.data.Dataset.zip(data.splits["train"], outputs).map(
        lambda element, made: (Taught(element[0], made), *element[1:])
    )
    return dataclasses.replace(
        data,
        splits={**data.splits, "train": with_outputs},
        read=None if data.read is None else _beside(data.read),
        transform=None if data.transform is None else _beside(data.transform),
    )


class Recorded(Teacher):
    """What a teacher gave earlier: it is known for the examples of the record alone, which bring it along."""

    is_live = False

    def __init__(self, known: Record) -> None:
        self.record = known
        self._members = [Teacher(known.about["name"], seen_from(each)) for each in known.about["seen"]]
        super().__init__(known.about["name"], self._members[0].seen)

    def outputs(self, x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Raises: these are no examples of the record."""
        raise ValueError(
            f"{self.record.path} has the outputs of {self.name!r} for some examples only, and these inputs bring none "
            "along: train on join(data, read_record(path)) of tfopt.distill"
        )

    def logits(self, outputs: Sequence[Any], kinds: Sequence[Kind | None]) -> list[Any]:
        """As the teacher's own."""
        return logits_of_mean(self._members, outputs, kinds)

    @functools.cached_property
    def digest(self) -> str:
        """The teacher's own."""
        return str(self.record.about["teacher"])

    def get_config(self) -> dict[str, Any]:
        """The record's place."""
        return {"record": str(self.record.path)}


def data_digest(data: Data, split: Any) -> str:
    """Differs where an input of a split differs, as models receive it, or their order."""
    parts = (each for batch in data.batches(split, _BATCH) for each in keras.tree.flatten(batch[0]))
    return digest(each.numpy() for each in parts).hex()


def _beside(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `function` makes of an example; the outputs that come with it stay."""

    def call(x: Any, *rest: Any) -> Any:
        if not isinstance(x, Taught):
            return function(x, *rest)
        made, *others = function(x.inputs, *rest)
        return (Taught(made, x.outputs), *others)

    return call


def read_record(path: str | os.PathLike[str]) -> Record:
    """What `record` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or something else.
    """
    path = pathlib.Path(path).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: it is what tfopt.distill.record writes, or cache= keeps")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            outputs = tuple(file[f"output{index}"] for index in range(len(file.files) - 1))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or no record of outputs ({error}): let the teacher run again") from error
    return Record(path, outputs, about)
