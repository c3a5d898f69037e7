"""The maths of distillation: what a student loses against its teacher, example by example."""

from typing import Literal

import tensorflow as tf

# What an output means: logits of one class among several, logits of classes that are each there or not, plain numbers.
Kind = Literal["softmax", "sigmoid", "values"]
# The least probability of a model that does not round: a confident teacher's 1e-12 says something once it is softened.
FLOOR = 1e-30
# What the numbers next to 1 in float32 are away from it, halved: of 1 - p nothing less can be seen.
_NEXT = 2.0**-25


def logits_of(probabilities: tf.Tensor, kind: Kind, floor: float = FLOOR) -> tf.Tensor:
    """The logits that a softmax or a sigmoid makes these probabilities of; of a softmax, up to a constant.

    Args:
      probabilities: float32 in [0, 1], classes along the last axis.
      kind: "softmax" or "sigmoid".
      floor: what a probability is at least taken for, above 0: zeros have no logarithm.

    >>> logits_of(tf.constant([[0.5, 0.5]]), "sigmoid").numpy().tolist()
    [[0.0, 0.0]]
    """
    known = tf.clip_by_value(probabilities, floor, 1.0)
    if kind == "softmax":
        return tf.math.log(known)
    return tf.math.log(known) - tf.math.log(tf.clip_by_value(1.0 - probabilities, max(floor, _NEXT), 1.0))


def soft_label_loss(teacher: tf.Tensor, student: tf.Tensor, temperature: float, kind: Kind = "softmax") -> tf.Tensor:
    """T² times the Kullback-Leibler divergence of the student's softened outputs from the teacher's.

    The factor keeps gradients as large as those of hard labels, whatever T is. At large T the gradient for a logit is
    that of the squared difference of centred logits: (student - teacher) / classes.

    Args:
      teacher: logits of shape (examples, …, classes), float32; for "values" plain numbers.
      student: the same of the student.
      temperature: T, above 0; not used for "values".
      kind: "softmax": classes exclude each other. "sigmoid": each is there or not; the mean over them. "values": the
        mean squared difference.

    Returns:
      Shape (examples, …), at least 0, and 0 where both agree.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531, section 2.

    >>> logits = tf.constant([[1.0, 2.0], [0.0, 4.0]])
    >>> soft_label_loss(logits, logits, temperature=2.0).numpy().tolist()
    [0.0, 0.0]
    """
    if kind == "values":
        return tf.reduce_mean(tf.math.squared_difference(teacher, student), -1)
    teacher, student = teacher / temperature, student / temperature
    if kind == "softmax":
        ours, theirs = tf.nn.log_softmax(student), tf.nn.log_softmax(teacher)
        divergence = tf.reduce_sum(tf.exp(theirs) * (theirs - ours), -1)
    else:
        present = tf.sigmoid(teacher) * (tf.math.log_sigmoid(teacher) - tf.math.log_sigmoid(student))
        absent = tf.sigmoid(-teacher) * (tf.math.log_sigmoid(-teacher) - tf.math.log_sigmoid(-student))
        divergence = tf.reduce_mean(present + absent, -1)
    return divergence * temperature**2


def attention_map(features: tf.Tensor) -> tf.Tensor:
    """Where a layer looks: the sum of squares over its channels, of length 1 for each example.

    Args:
      features: shape (examples, places…, channels), float32.

    Returns:
      Shape (examples, places).

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, 2017, arXiv:1612.03928, equation 2.

    >>> attention_map(tf.constant([[[3.0], [0.0]]])).numpy().tolist()
    [[1.0, 0.0]]
    """
    energy = tf.reduce_sum(tf.square(features), -1)
    return tf.math.l2_normalize(tf.reshape(energy, [tf.shape(energy)[0], -1]), -1)


def relational_loss(
    teacher: tf.Tensor, student: tf.Tensor, angle: float = 2.0, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """How differently two layers arrange the examples of a batch: by distances of pairs, and angles of triplets.

    Args:
      teacher: shape (examples, numbers), float32.
      student: shape (examples, numbers); its width may be another one.
      angle: what the loss of angles counts beside that of distances.
      weights: of the examples; a pair counts their product. None: 1.

    Returns:
      A number: mean Huber loss over pairs of distances as parts of their mean, plus `angle` times that over triplets of
      cosines.

    Source: Park et al., Relational Knowledge Distillation, 2019, arXiv:1904.05068, equations 4 to 8.

    >>> square = tf.constant([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> float(relational_loss(square, 3.0 * square)) < 1e-6
    True
    """
    count = tf.shape(student)[0]
    weights = tf.ones([count]) if weights is None else weights
    pairs = weights[:, None] * weights[None, :] * (1.0 - tf.eye(count))
    distances = [_distances(each, pairs) for each in (teacher, student)]
    loss = tf.math.divide_no_nan(tf.reduce_sum(pairs * _huber(*distances)), tf.reduce_sum(pairs))
    if angle:
        triplets = weights[:, None, None] * pairs[None] * (1.0 - tf.eye(count))[:, :, None]
        triplets *= (1.0 - tf.eye(count))[:, None, :]
        cosines = [_cosines(each) for each in (teacher, student)]
        loss += angle * tf.math.divide_no_nan(tf.reduce_sum(triplets * _huber(*cosines)), tf.reduce_sum(triplets))
    return loss


def _distances(points: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
    """Distances of pairs of points, as parts of their mean."""
    squares = tf.reduce_sum(tf.math.squared_difference(points[:, None], points[None]), -1)
    # The root has no gradient at 0, where a point is itself or like another one.
    distances = tf.where(squares > 0, tf.sqrt(tf.where(squares > 0, squares, 1.0)), 0.0)
    mean = tf.math.divide_no_nan(tf.reduce_sum(pairs * distances), tf.reduce_sum(pairs))
    return tf.math.divide_no_nan(distances, mean)


def _cosines(points: tf.Tensor) -> tf.Tensor:
    """[i, j, k]: the cosine of the angle at i between j and k."""
    directions = tf.math.l2_normalize(points[None] - points[:, None], -1)
    return tf.einsum("ijd,ikd->ijk", directions, directions)


def _huber(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    difference = tf.abs(teacher - student)
    return tf.where(difference <= 1.0, 0.5 * tf.square(difference), difference - 0.5)
