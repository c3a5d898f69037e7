"""What a student learns from the layers of its teacher: hints, attention, relations."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import Config, require
from tfopt.distill.layers import Shape
from tfopt.distill.losses import attention_map, relational_loss


@dataclasses.dataclass(frozen=True, repr=False)
class Feature(Config):
    """A layer of the student, which learns from one of the teacher.

    Args:
      student: the layer's name in the student.
      teacher: the layer's name in the teacher; None: the same name.
      weight: what its loss is multiplied by, above 0.

    Raises:
      ValueError: for a weight that is not above 0.
    """

    student: str
    teacher: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight > 0, f"the weight of the feature {self.student!r} must be above 0, received {self.weight}")

    @property
    def teacher_layer(self) -> str:
        """The layer's name in the teacher."""
        return self.student if self.teacher is None else self.teacher

    def check_parts(self, parts: int) -> None:
        """Raises where it cannot be learnt from parts of a batch, by replicas or in micro-batches."""

    def projected(self, student: Shape, teacher: Shape) -> int | None:
        """The channels that the student's features must be brought to; None: they stay. Raises where none would fit."""
        return None

    def loss(self, teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
        """The loss of a batch, before its weight."""
        return ExampleMean(self.by_example)(teacher, student, weights)

    def by_example(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """The loss of each example."""
        raise NotImplementedError


class Hint(Feature):
    """The mean squared difference of the features. A learned projection, used in training only, brings the student's to
    as many channels; where one has a multiple of the other's places, its places are averaged.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2015, arXiv:1412.6550, equation 3.

    >>> Hint("conv2", "block4", weight=0.1)
    Hint(student='conv2', teacher='block4', weight=0.1)
    """

    def projected(self, student: Shape, teacher: Shape) -> int | None:
        """The channels of the teacher, where the student has others."""
        _pools(student, teacher)
        return None if student[-1] == teacher[-1] else teacher[-1]

    def by_example(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """The mean over places and channels."""
        teacher, student = _same_places(teacher, student)
        return tf.reduce_mean(tf.math.squared_difference(teacher, student), list(range(1, len(student.shape))))


class Attention(Feature):
    """The squared distance of the attention maps: where the features are large, whatever their channels.

    Source: Zagoruyko and Komodakis, 2017, arXiv:1612.03928, equation 2.

    >>> Attention("conv2")
    Attention(student='conv2')
    """

    def projected(self, student: Shape, teacher: Shape) -> int | None:
        """None; places are needed."""
        require(
            len(student) >= 3 and len(teacher) >= 3,
            f"Attention({self.student!r}, {self.teacher_layer!r}) compares places, and the features have shapes "
            f"{student} and {teacher}: take layers with places and channels, such as convolutions",
        )
        _pools(student, teacher)
        return None

    def by_example(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """The squared distance of the maps."""
        teacher, student = _same_places(teacher, student)
        return tf.reduce_sum(tf.math.squared_difference(attention_map(teacher), attention_map(student)), -1)


@dataclasses.dataclass(frozen=True, repr=False)
class Relational(Feature):
    """How the examples of a batch lie to each other: distances of pairs, angles of triplets.

    Memory grows with the cube of the batch size: take a layer after the last pooling, and small batches.

    Args:
      angle: what angles count beside distances; 0: only distances.

    Source: Park et al., Relational Knowledge Distillation, 2019, arXiv:1904.05068.

    >>> Relational("pool", weight=10)
    Relational(student='pool', weight=10)
    """

    angle: float = 2.0

    def check_parts(self, parts: int) -> None:
        """Raises where a batch has several parts."""
        require(
            parts == 1,
            f"{self!r} compares the examples of a batch with each other, and {parts} replicas or micro-batches have "
            "only a part each: train on one device, or leave it out",
        )

    def loss(self, teacher: tf.Tensor, student: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
        """The loss over all pairs and triplets."""
        teacher, student = (tf.reshape(each, [tf.shape(each)[0], -1]) for each in (teacher, student))
        return relational_loss(teacher, student, self.angle, weights)


def as_features(features: Sequence[Any]) -> tuple[Feature, ...]:
    """Features as they are; pairs of names as hints.

    Raises:
      TypeError: something else is among them.
    """
    found = []
    for each in features:
        is_pair = isinstance(each, tuple | list) and len(each) == 2 and all(isinstance(name, str) for name in each)
        if not is_pair and not isinstance(each, Feature):
            raise TypeError(
                f"features are pairs of layer names (student's, teacher's), or Hint, Attention, Relational of "
                f"tfopt.distill; received {each!r}"
            )
        found.append(Hint(*each) if is_pair else each)
    return tuple(found)


class ExampleMean(keras.losses.Loss):
    """The mean over the examples of a batch, weighted; divided among replicas as Keras divides it."""

    def __init__(self, by_example: Any) -> None:
        super().__init__(name="distillation")
        self._by_example = by_example

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The loss of each example."""
        return self._by_example(y_true, y_pred)


def _pools(student: Shape, teacher: Shape) -> list[tuple[int, int]]:
    """By how much the places of the student and of the teacher are averaged, along each of their axes."""
    factors = []
    fits = len(student) == len(teacher)
    for ours, theirs in zip(student[1:-1], teacher[1:-1], strict=False):
        if ours == theirs:
            factors.append((1, 1))
        elif ours and theirs and max(ours, theirs) % min(ours, theirs) == 0:
            factors.append((max(1, ours // theirs), max(1, theirs // ours)))
        else:
            fits = False
    require(
        fits,
        f"features of shapes {student} of the student and {teacher} of the teacher have no places in common: take "
        "layers whose places are equal, or one a multiple of the other, along each axis",
    )
    return factors


def _same_places(teacher: tf.Tensor, student: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    factors = _pools(tuple(student.shape), tuple(teacher.shape))
    return _average(teacher, [theirs for _, theirs in factors]), _average(student, [ours for ours, _ in factors])


def _average(features: tf.Tensor, factors: Sequence[int]) -> tf.Tensor:
    """The mean over neighbouring places."""
    if all(factor == 1 for factor in factors):
        return features
    shape = [tf.shape(features)[0]]
    for size, factor in zip(features.shape[1:-1], factors, strict=True):
        shape += [size // factor, factor]
    axes = list(range(2, len(shape), 2))
    return tf.reduce_mean(tf.reshape(features, [*shape, features.shape[-1]]), axes)
