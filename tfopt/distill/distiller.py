"""`Distiller`: a student that learns from a teacher, inside anyone's `compile` and `fit`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import require, require_fraction
from tfopt.distill.features import (
    Attention,
    ExampleMean,
    Feature,
    Hint,
    Relational,
    as_features,
)
from tfopt.distill.layers import Projection, Watched, masked
from tfopt.distill.losses import FLOOR, Kind, soft_label_loss
from tfopt.distill.outputs import Seen, kind_of, look_at, seen_from
from tfopt.distill.records import Taught
from tfopt.distill.teacher import Teacher
from tfopt.distill.teachers import as_teacher, noise, teacher_from_config
from tfopt.quantize.frozen import is_quantized


@keras.saving.register_keras_serializable("tfopt")
class Distiller(keras.Model):
    """A student that learns from a teacher, in your own `compile` and `fit`; afterwards `.student` is what you keep.

    The loss is `(1 - alpha)` times that of `compile`, plus `alpha` times that against the teacher's outputs, plus those
    of the features; sample weights, class weights and masks count in all of them. Evaluation is the student's alone.
    The teacher is no part of the model: it has no layer, variable or metric in it, and nothing of it is changed.

    Args:
      student: built; functional or Sequential where there are features, else of any kind.
      teacher: a built Keras model; the path of a saved one or of a .tflite file; a list of these: an ensemble, whose
        probabilities' mean is taken.
      temperature: softens the outputs of both, above 0; the softer, the more the classes count that are not the first.
      alpha: what the teacher's outputs count beside the targets, in [0, 1].
      features: pairs of layer names (student's, teacher's), which are `Hint`s; or `Hint`, `Attention`, `Relational` of
        `tfopt.distill`.
      examples: a batch of inputs, to see what outputs are like; None: random numbers.

    Raises:
      ValueError: outputs or inputs of other shapes, no such layers, features that do not fit, values out of range; in
        `fit`, a loss that does not tell what outputs are.

    Sources: Hinton et al., 2015, arXiv:1503.02531; the interface is that of `keras.distillation.Distiller`.

    >>> teacher, student = (
    ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(width), keras.layers.Dense(3, "softmax")])
    ...     for width in (32, 2)
    ... )
    >>> distiller = Distiller(student, teacher, temperature=4.0)
    >>> distiller.compile("adam", "sparse_categorical_crossentropy")
    >>> _ = distiller.fit(tf.ones([8, 4]), tf.zeros([8]), verbose=0)
    >>> len(distiller.student.layers)
    2
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: Any,
        temperature: float = 2.0,
        alpha: float = 0.5,
        features: Sequence[Any] = (),
        examples: Any = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        seen = options.pop("seen", None)
        # The student and the teacher see what they are given, each in its own precision.
        super().__init__(name=name or student.name, autocast=False, **options)
        self._features = as_features(features)
        check_weights(temperature, alpha, self._features)
        require(bool(student.built), f"the student {student.name!r} is not built: give it a keras.Input as first layer")
        self.student, self.temperature, self.alpha = student, temperature, alpha
        names = [each.student for each in self._features]
        self._watched = Watched(student, names, "student") if names else None
        if seen is None or not isinstance(teacher, Teacher):
            examples = noise(student) if examples is None else examples
        self._seen = look_at(student(examples, training=False)) if seen is None else seen
        if is_quantized(student):
            # Its outputs are rounded when it predicts, not in training: nothing there must be taken for a rounded 0.
            self._seen = [dataclasses.replace(each, floor=FLOOR) for each in self._seen]
        self._teacher = as_teacher(teacher, examples, [each.teacher_layer for each in self._features])
        _check_outputs(student.name, self._seen, self._teacher)
        self.projections = self._make_projections()
        self.supports_jit = self._teacher.in_graph
        self.built = True

    @property
    def teacher(self) -> Teacher:
        """What the student learns from."""
        return self._teacher

    @property
    def output_names(self) -> list[str]:
        """The student's."""
        return self.student.output_names

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The student's outputs."""
        x = inputs.inputs if isinstance(inputs, Taught) else inputs
        return self.student(x) if self._watched is None else self._watched(x, training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """In training the loss of student, teacher and features together; else the student's."""
        own = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        if not training:
            return own
        parts = self.distribute_strategy.num_replicas_in_sync * getattr(self, "micro_batches", 1)
        for each in self._features:
            each.check_parts(parts)
        # Regularization stays whole, whatever alpha is.
        added = [self._aggregate_additional_loss(each) for each in self.losses]
        outputs, features = self._ask(x)
        # No gradient flows into the teacher.
        outputs, features = ([tf.stop_gradient(each) for each in some] for some in (outputs, features))
        losses, answers = self._tasks(), keras.tree.flatten(y_pred)
        logits = self._teacher.logits(outputs, [kind for kind, _, _ in losses])
        weights = _weights_of(sample_weight, len(losses))
        soft = [
            factor * self._soft_loss(kind, from_logits, seen)(theirs, ours, weight)
            for (kind, from_logits, factor), seen, theirs, ours, weight in zip(
                losses, self._seen, logits, answers, weights, strict=True
            )
            if kind is not None
        ]
        learnt = tf.add_n([tf.zeros([]), *soft, *added])
        return (1 - self.alpha) * own + self.alpha * learnt + self._feature_loss(features, weights)

    def teacher_answers(self, x: Any) -> Any:
        """The teacher's outputs as the student gives them: probabilities for probabilities. Once it is compiled."""
        losses = self._tasks()
        logits = self._teacher.logits(self._ask(x)[0], [kind or "values" for kind, _, _ in losses])
        answers = [
            each
            if from_logits or kind in (None, "values")
            else tf.sigmoid(each)
            if kind == "sigmoid"
            else tf.nn.softmax(each)
            for each, (kind, from_logits, _) in zip(logits, losses, strict=True)
        ]
        return keras.tree.pack_sequence_as(self._compile_loss._y_pred_build_structure, answers)

    def _ask(self, x: Any) -> tuple[Sequence[Any], Sequence[Any]]:
        """The teacher's outputs and features for a batch."""
        if not isinstance(x, Taught):
            return self._teacher.outputs(x)
        require(
            not self._features, "these inputs bring the teacher's outputs along, and no features: leave features out"
        )
        return x.outputs, []

    def _soft_loss(self, kind: Kind, from_logits: bool, seen: Seen) -> ExampleMean:
        """What the student loses against the teacher's logits at one output."""
        return ExampleMean(
            lambda teacher, student: soft_label_loss(
                teacher, seen.logits(student, kind, from_logits), self.temperature, kind
            )
        )

    def _feature_loss(self, features: Sequence[tf.Tensor], weights: Sequence[Any]) -> Any:
        """The weighted sum of the losses of the features."""
        if self._watched is None:
            return 0.0
        known = [tf.reshape(each, [tf.shape(each)[0], -1]) for each in weights if each is not None]
        weight = (
            tf.add_n([tf.reduce_mean(tf.cast(each, tf.float32), 1) for each in known]) / len(known) if known else None
        )
        total, projections = 0.0, iter(self.projections)
        for feature, channels, theirs, ours in zip(
            self._features, self._channels, features, self._watched.features, strict=True
        ):
            student = masked(ours, ours)
            if channels is not None:
                student = next(projections)(student)
            total += feature.weight * feature.loss(masked(theirs, ours), student, weight)
        return total

    def _tasks(self) -> list[tuple[Kind | None, bool, float]]:
        """Of each output what it means, whether it is logits, and the weight of its loss; None without a loss."""
        count = len(self._seen)
        found: list[tuple[Kind | None, bool, float]] = [(None, False, 0.0)] * count
        # Keras has worked out by now which loss is that of which output.
        places = keras.tree.pack_sequence_as(self._compile_loss._y_pred_build_structure, list(range(count)))
        for path, loss, weight, _ in self._compile_loss._flat_losses:
            place = places
            for step in path:
                place = place[step]
            # Features alone can be learnt whatever the outputs are.
            kind = kind_of(loss) if self.alpha > 0 else None
            found[place] = kind, _from_logits(loss), 1.0 if weight is None else weight
        return found

    def _make_projections(self) -> list[Projection]:
        """A projection for each feature that needs one."""
        self._channels: list[int | None] = []
        made: list[Projection] = []
        if self._watched is None:
            return made
        for index, (feature, ours, theirs) in enumerate(
            zip(self._features, self._watched.shapes, self._teacher.shapes, strict=True)
        ):
            channels = feature.projected(ours, theirs)
            self._channels.append(channels)
            if channels is not None:
                made.append(Projection(channels, index, name=f"projection_{index}", dtype="float32"))
                made[-1].build(ours)
        return made

    def save_own_variables(self, store: Any) -> None:
        """Saves the teacher's weights too, without which the student could not go on learning."""
        for index, value in enumerate(self._teacher.arrays()):
            store[str(index)] = value

    def load_own_variables(self, store: Any) -> None:
        """The reverse."""
        self._teacher.set_arrays([store[str(index)][()] for index in range(len(store.keys()))])

    def get_config(self) -> dict[str, Any]:
        """Student, teacher, and how the one learns from the other."""
        student = keras.saving.serialize_keras_object(self.student)
        student.pop("compile_config", None)
        return {
            "student": student,
            "teacher": self._teacher.get_config(),
            "temperature": self.temperature,
            "alpha": self.alpha,
            "features": [{"kind": type(each).__name__, **dataclasses.asdict(each)} for each in self._features],
            "seen": [dataclasses.astuple(each) for each in self._seen],
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> "Distiller":
        """The reverse of `get_config`."""
        config = dict(config)
        kinds = {each.__name__: each for each in (Hint, Attention, Relational)}
        return cls(
            student=keras.saving.deserialize_keras_object(config.pop("student"), custom_objects=custom_objects),
            teacher=teacher_from_config(config.pop("teacher")),
            features=[kinds[each.pop("kind")](**each) for each in map(dict, config.pop("features"))],
            seen=seen_from(config.pop("seen")),
            **config,
        )


def check_weights(temperature: float, alpha: float, features: Sequence[Feature]) -> None:
    """Raises a ValueError where temperature or alpha are out of range, or nothing is learnt from the teacher."""
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    require(
        is_number and temperature > 0,
        f"temperature must be a number above 0, received {temperature!r}; 1 to 10 is usual",
    )
    require_fraction("alpha", alpha, one=True)
    require(
        alpha > 0 or bool(features),
        "alpha=0 without features learns nothing from the teacher: raise alpha, or name features",
    )


def _check_outputs(name: str, student: Sequence[Seen], teacher: Teacher) -> None:
    ours, theirs = ([each.shape for each in seen] for seen in (student, teacher.seen))
    require(
        ours == theirs,
        f"the teacher {teacher.name!r} gives outputs of shape {_shapes(theirs)} an example, the student {name!r} "
        f"{_shapes(ours)}: they must have the same classes or numbers",
    )


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))


def _from_logits(loss: Any) -> bool:
    return bool(getattr(loss, "from_logits", getattr(loss, "_fn_kwargs", {}).get("from_logits", False)))


def _weights_of(sample_weight: Any, count: int) -> list[Any]:
    """The sample weights of each output."""
    weights = keras.tree.flatten(sample_weight)
    return weights if len(weights) == count else weights[:1] * count if weights else [None] * count
