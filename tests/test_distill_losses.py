"""The maths of distillation against NumPy, by hand."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.distill.losses import FLOOR, attention_map, logits_of, relational_loss, soft_label_loss
from tfopt.distill.outputs import Seen, kind_of, look_at

RNG = np.random.default_rng(0)
TEACHER, STUDENT = RNG.normal(0, 3, (2, 5, 4))


def softmax(z):
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def measured(teacher, student, *rest):
    return soft_label_loss(tf.constant(teacher, tf.float32), tf.constant(student, tf.float32), *rest).numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_labels_are_the_divergence_times_the_squared_temperature(temperature):
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    by_hand = temperature**2 * (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(measured(TEACHER, STUDENT, temperature), by_hand, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_labels_that_do_not_exclude_each_other(temperature):
    p, q = sigmoid(TEACHER / temperature), sigmoid(STUDENT / temperature)
    by_hand = temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(-1)
    np.testing.assert_allclose(measured(TEACHER, STUDENT, temperature, "sigmoid"), by_hand, rtol=1e-4)


def test_plain_numbers_have_a_squared_difference():
    by_hand = ((TEACHER - STUDENT) ** 2).mean(-1)
    np.testing.assert_allclose(measured(TEACHER, STUDENT, 3.0, "values"), by_hand, rtol=1e-5)


def test_a_high_temperature_matches_centred_logits():
    # Hinton et al., equation 4.
    student = tf.Variable(STUDENT, dtype=tf.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(soft_label_loss(tf.constant(TEACHER, tf.float32), student, 300.0))
    ours, theirs = (each - each.mean(-1, keepdims=True) for each in (STUDENT, TEACHER))
    np.testing.assert_allclose(tape.gradient(loss, student).numpy(), (ours - theirs) / 4, rtol=0.05, atol=0.02)


def test_a_low_temperature_looks_at_the_first_class_alone():
    teacher = np.array([[5.0, 0.0, 1.0]])
    # Both have the first class; the others do not count any more.
    assert measured(teacher, [[9.0, 3.0, 0.0]], 0.05)[0] < 1e-6
    assert measured(teacher, [[9.0, 3.0, 0.0]], 4.0)[0] > 0.5


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(-6, 6), min_size=3, max_size=3),
    st.sampled_from([("softmax", softmax), ("sigmoid", sigmoid)]),
    st.floats(0.5, 8),
)
def test_probabilities_say_what_logits_say(logits, kind, temperature):
    name, to_probabilities = kind
    z = np.array([logits])
    known = logits_of(tf.constant(to_probabilities(z), tf.float32), name)
    reference = np.array([[0.5, -1.0, 2.0]])
    assert measured(known, reference, temperature, name) == pytest.approx(
        measured(z, reference, temperature, name), rel=1e-2, abs=1e-3
    )


def test_a_confident_teacher_is_heard():
    z = np.array([[0.0, -30.0, -45.0]])
    known = logits_of(tf.constant(softmax(z), tf.float32), "softmax")
    np.testing.assert_allclose(known.numpy(), z, rtol=1e-5, atol=1e-5)
    known = logits_of(tf.constant(sigmoid(np.array([[-30.0, 12.0]])), tf.float32), "sigmoid")
    np.testing.assert_allclose(known.numpy(), [[-30.0, 12.0]], rtol=1e-2)


def test_attention_map():
    features = RNG.normal(size=(3, 2, 4, 5))
    energy = (features**2).sum(-1).reshape(3, 8)
    by_hand = energy / np.sqrt((energy**2).sum(-1, keepdims=True))
    np.testing.assert_allclose(attention_map(tf.constant(features, tf.float32)).numpy(), by_hand, rtol=1e-5)


def huber(a, b):
    d = abs(a - b)
    return d * d / 2 if d <= 1 else d - 0.5


def relations_by_hand(teacher, student, angle):
    places = range(len(teacher))
    pairs = list(itertools.permutations(places, 2))
    distances = []
    for points in (teacher, student):
        found = np.array([np.linalg.norm(points[i] - points[j]) for i, j in pairs])
        distances.append(found / found.mean())
    loss = np.mean([huber(a, b) for a, b in zip(*distances, strict=True)])

    def cosine(points, i, j, k):
        a, b = points[j] - points[i], points[k] - points[i]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    angles = [huber(cosine(teacher, *each), cosine(student, *each)) for each in itertools.permutations(places, 3)]
    return loss + angle * np.mean(angles)


@pytest.mark.parametrize("angle", [0.0, 2.0])
def test_relations(angle):
    teacher, student = RNG.normal(size=(6, 3)), RNG.normal(0, 2, size=(6, 5))
    student[3] += 20
    found = relational_loss(tf.constant(teacher, tf.float32), tf.constant(student, tf.float32), angle)
    assert float(found) == pytest.approx(relations_by_hand(teacher, student, angle), rel=1e-4)


def test_an_example_of_weight_zero_has_no_relations():
    teacher, student = (tf.constant(RNG.normal(size=(6, width)), tf.float32) for width in (3, 5))
    weights = tf.constant([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    with_it = relational_loss(teacher, student, weights=weights)
    assert float(with_it) == pytest.approx(float(relational_loss(teacher[:5], student[:5])), rel=1e-5)


def test_equal_examples_have_a_gradient():
    student = tf.Variable(tf.ones([4, 3]))
    with tf.GradientTape() as tape:
        loss = relational_loss(tf.constant(RNG.normal(size=(4, 2)), tf.float32), student)
    assert np.isfinite(tape.gradient(loss, student).numpy()).all()


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("sparse_categorical_crossentropy", "softmax"),
        (keras.losses.CategoricalCrossentropy(from_logits=True), "softmax"),
        (keras.losses.BinaryFocalCrossentropy(), "sigmoid"),
        ("mae", "values"),
        (keras.losses.Huber(), "values"),
    ],
)
def test_the_loss_tells_what_outputs_mean(loss, kind):
    assert kind_of(loss) == kind


@pytest.mark.parametrize("loss", ["hinge", lambda y, p: y - p])
def test_a_loss_that_does_not_tell_is_refused(loss):
    with pytest.raises(ValueError, match="does not tell whether outputs are probabilities"):
        kind_of(loss)


@pytest.mark.parametrize(
    ("outputs", "seen"),
    [
        (softmax(TEACHER), Seen((4,), True, True, FLOOR)),
        (TEACHER, Seen((4,), False, False, FLOOR)),
        (sigmoid(TEACHER), Seen((4,), False, True, FLOOR)),
        # As an int8 file gives them.
        ([[0.0, 0.99609375, 0.00390625]], Seen((3,), True, True, 1 / 512)),
        ([[1.0], [0.25]], Seen((1,), False, True, FLOOR)),
    ],
)
def test_what_outputs_show(outputs, seen):
    assert look_at(np.array(outputs)) == [seen]
