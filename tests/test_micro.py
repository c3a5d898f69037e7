"""Micro-batches: parts of a batch, whose weighted means are those of the whole."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.train.micro import batch_size, bounds, join_parts, part_or_one, part_weights, slice_batch


def take_part(data, parts, index):
    return slice_batch(data, *bounds(batch_size(data), parts, index))


def split_batch(data, parts):
    return [take_part(data, parts, index) for index in range(parts)]


sizes, counts = st.integers(0, 40), st.integers(1, 9)


@given(sizes, counts)
def test_parts_are_consecutive_whole_and_as_equal_as_can_be(size, parts):
    cuts = [bounds(size, parts, index) for index in range(parts)]
    expected = [len(each) for each in np.array_split(np.arange(size), parts)]
    assert [stop - start for start, stop in cuts] == expected
    assert cuts[0][0] == 0
    assert cuts[-1][1] == size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(cuts))
    # So a loop over the first min(size, parts) of them never meets an empty one.
    assert [each > 0 for each in expected] == [index < size for index in range(parts)]


@settings(max_examples=25)
@given(sizes, counts)
def test_tensors_are_cut_where_numbers_are(size, parts):
    for index in range(parts):
        cut = bounds(tf.constant(size), parts, tf.constant(index))
        assert tuple(int(each) for each in cut) == bounds(size, parts, index)
    weights = part_weights(tf.constant(size), parts).numpy()
    counted = [stop - start for start, stop in (bounds(size, parts, index) for index in range(parts))]
    np.testing.assert_allclose(weights, np.divide(counted, max(size, 1)), rtol=1e-7)


@pytest.mark.parametrize("size", [7, 8, 2])
def test_a_nested_batch_is_split_in_a_graph_that_does_not_know_its_size(size):
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([None], tf.int64)])
    def split(x, y):
        traces.append(x.shape)
        data = ({"a": x, "b": [x + 1]}, y, None)
        parts = split_batch(data, 3)
        assert [part[2] for part in parts] == [None] * 3
        return [part[:2] for part in parts]

    x, y = np.arange(2.0 * size, dtype="float32").reshape(size, 2), np.arange(size)
    parts = split(x, y)
    assert traces == [(None, 2)]
    for part, rows in zip(parts, np.array_split(np.arange(size), 3), strict=True):
        np.testing.assert_array_equal(part[0]["a"], x[rows])
        np.testing.assert_array_equal(part[0]["b"][0], x[rows] + 1)
        np.testing.assert_array_equal(part[1], y[rows])


def test_a_loop_takes_one_part_at_a_time():
    x = tf.random.normal([10, 3])

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def total(x):
        weights = part_weights(batch_size(x), 4)

        def body(index, sum_):
            return index + 1, sum_ + weights[index] * tf.reduce_mean(take_part(x, 4, index))

        last = tf.minimum(batch_size(x), 4)
        return tf.while_loop(lambda index, _: index < last, body, [0, 0.0])[1]

    for size in (10, 4, 3, 1):
        np.testing.assert_allclose(total(x[:size]), tf.reduce_mean(x[:size]), atol=1e-7)


def test_weighted_gradients_are_those_of_the_whole_batch():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    rng = np.random.default_rng(0)
    x, y, weight = (rng.normal(size=shape).astype("float32") for shape in ((7, 3), (7, 2), (7,)))
    loss_of = keras.losses.MeanSquaredError()

    def gradients(data):
        x, y, weight = data
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x), sample_weight=weight)
        return [each.numpy() for each in tape.gradient(loss, model.trainable_weights)]

    shares = part_weights(7, 3).numpy()
    parts = [gradients(part) for part in split_batch((x, y, np.abs(weight)), 3)]
    whole = gradients((x, y, np.abs(weight)))
    for index, expected in enumerate(whole):
        total = sum(share * part[index] for share, part in zip(shares, parts, strict=True))
        np.testing.assert_allclose(total, expected, atol=1e-6)


def test_ragged_and_sparse_tensors_are_split_too():
    ragged = tf.ragged.constant([[1], [2, 3], [], [4, 5, 6], [7]])
    sparse = tf.sparse.from_dense(np.eye(5, 4, dtype="float32"))
    first, second = split_batch({"ragged": ragged, "sparse": sparse}, 2)
    assert first["ragged"].to_list() == [[1], [2, 3], []]
    assert second["ragged"].to_list() == [[4, 5, 6], [7]]
    np.testing.assert_array_equal(tf.sparse.to_dense(second["sparse"]), np.eye(5, 4)[3:])

    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None], tf.int32), tf.SparseTensorSpec([None, 4])])
    def sizes_of(ragged, sparse):
        return batch_size(ragged), batch_size(sparse)

    assert [int(each) for each in sizes_of(ragged, sparse)] == [5, 5]


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("known", [True, False])
def test_parts_that_are_never_empty_are_joined_to_the_batch(size, known):
    def through(x):
        count = batch_size(x)
        parts = [part_or_one({"x": x}, count, 3, index) for index in range(3)]
        return join_parts(parts, count)["x"], [tf.shape(part["x"])[0] for part in parts]

    x = tf.random.normal([size, 2])
    joined, sizes = tf.function(through, input_signature=[tf.TensorSpec([size if known else None, 2])])(x)
    np.testing.assert_array_equal(joined, x)
    assert all(each >= 1 for each in sizes)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="must have at least one tensor"):
        split_batch((None, None), 2)
    with pytest.raises(ValueError, match="must have a batch dimension first"):
        split_batch((np.zeros(3), np.float32(1)), 2)
