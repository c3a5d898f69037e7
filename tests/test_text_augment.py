"""Augmentations of tokens: the same numbers in any batch, order or worker; padding stays where it is."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfopt
from tfopt import augment
from tfopt.augment.seeds import fold
from tfopt.text import TokenDropout, TokenSwap

OPERATIONS = {
    "dropout": TokenDropout(0.4),
    "holes": TokenDropout(0.4, replace_by=0),
    "swap": TokenSwap(0.6),
}
STILL = [TokenDropout(0.0), TokenSwap(0.0)]
LENGTH = 9


def padded(lengths, dtype="int32", length=LENGTH, start=2):
    """Rows of other numbers each, so that what moved can be told."""
    rows = np.zeros((len(lengths), length), dtype)
    for row, size in zip(rows, lengths, strict=True):
        row[:size] = np.arange(start, start + size)
    return rows


batches = st.lists(st.integers(0, LENGTH), min_size=1, max_size=6).map(padded)


def seeds_of(count):
    return np.arange(count) * 7919 - 5


@pytest.mark.parametrize("name", OPERATIONS)
@given(tokens=batches)
@settings(max_examples=10, deadline=None)
def test_each_row_by_itself_and_padding_stays(name, tokens):
    operation, seeds = OPERATIONS[name], seeds_of(len(tokens))
    for dtype in ("int32", "int64"):
        made = operation(tokens.astype(dtype), seeds).numpy()
        assert made.dtype == dtype
        assert made.shape == tokens.shape
    assert np.array_equal(operation(tokens, seeds), made)
    for row, seed, expected in zip(tokens, seeds, made, strict=True):
        assert np.array_equal(operation(row, seed), expected)
    assert np.array_equal(operation(tokens[::-1], seeds[::-1]), made[::-1])
    assert (made[tokens == 0] == 0).all()


@pytest.mark.parametrize("operation", STILL, ids=repr)
@given(tokens=batches)
@settings(max_examples=10, deadline=None)
def test_nothing_at_fraction_zero(operation, tokens):
    assert np.array_equal(operation(tokens, seeds_of(len(tokens))), tokens)


@pytest.mark.parametrize("replace_by", [0, 1, 77])
def test_as_many_are_dropped_as_asked(replace_by):
    tokens = padded([30] * 2000, length=40)
    made = TokenDropout(0.2, replace_by)(tokens, np.arange(2000)).numpy()
    changed = made != tokens
    assert set(made[changed].tolist()) == {replace_by}
    assert not changed[:, 30:].any()
    assert abs(changed[:, :30].mean() - 0.2) < 0.01
    # At each place, not only on the whole.
    assert np.abs(changed[:, :30].mean(0) - 0.2).max() < 0.04
    everything = TokenDropout(1.0, replace_by)(tokens, np.arange(2000)).numpy()
    assert (everything[:, :30] == replace_by).all()


@given(tokens=batches, fraction=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_only_neighbours_change_places(tokens, fraction):
    made = TokenSwap(fraction)(tokens, seeds_of(len(tokens))).numpy()
    assert np.array_equal(np.sort(made, 1), np.sort(tokens, 1))
    places = np.where(tokens != 0, np.arange(LENGTH) + 2, 0)
    moved = made - places
    assert np.abs(moved).max() <= 1
    # Every move to the left is next to one to the right.
    right = moved == 1
    assert np.array_equal(np.roll(right, 1, 1), moved == -1)


def test_as_many_are_swapped_as_asked():
    tokens = padded([30] * 2000, length=40)
    made = TokenSwap(0.3)(tokens, np.arange(2000)).numpy()
    swapped = (made[:, :29] == tokens[:, 1:30]).mean(0)
    # Each place is the first of a pair for half of the seeds.
    assert np.abs(swapped - 0.15).max() < 0.04
    every = TokenSwap(1.0)(padded([4, 4, 4, 4, 1, 0], length=5), np.arange(6)).numpy()
    assert {tuple(row) for row in every[:4]} == {(3, 2, 5, 4, 0), (2, 4, 3, 5, 0)}
    assert every[4:].tolist() == [[2, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("name", OPERATIONS)
def test_parallel_maps_give_what_sequential_ones_do(name):
    tokens = padded([5, 9, 7] * 20)
    examples = tf.data.Dataset.from_tensor_slices(tokens).enumerate()

    def mapped(**options):
        return [y.numpy() for y in examples.map(lambda i, x: OPERATIONS[name](x, fold(i, 3)), **options)]

    one, eight = mapped(), mapped(num_parallel_calls=8)
    batched = OPERATIONS[name](tokens, fold(tf.range(60, dtype=tf.int64), 3)).numpy()
    assert np.array_equal(one, eight)
    assert np.array_equal(one, batched)
    assert not np.array_equal(batched, tokens)


def test_rows_of_a_length_that_is_not_known():
    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None,), tf.int64)])
    def both(tokens, seeds):
        return augment.chain((TokenDropout(0.3), TokenSwap(0.5)), tokens, seeds)

    tokens, seeds = padded([5, 9, 7]), seeds_of(3)
    assert np.array_equal(both(tokens, seeds), augment.chain((TokenDropout(0.3), TokenSwap(0.5)), tokens, seeds))


def test_epochs_differ_and_can_be_repeated():
    tokens = padded([9] * 40)
    data = tfopt.from_arrays(
        (tokens, np.arange(40) % 2), batch_size=8, augment=(TokenDropout(0.2), TokenSwap(0.2)), seed=4
    )
    first, again, second = (np.concatenate([x.numpy() for x, _ in data.training_batches(epoch)]) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert np.array_equal(np.concatenate([x for x, _ in data.test]), padded([9] * data.sizes["test"]))
    other = dataclasses.replace(data, augment=(TokenDropout(0.3),))
    assert data.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenDropout(20), "fraction must be a fraction"),
        (lambda: TokenDropout(replace_by=-1), "replace_by must be a token's number"),
        (lambda: TokenSwap(-0.1), "fraction must be a fraction"),
        (lambda: TokenSwap()(np.zeros((3,), "float32"), 0), "int32 or int64, received float32"),
        (lambda: TokenSwap()(np.zeros((3, 4, 5), "int32"), 0), "of shape"),
        (lambda: TokenSwap()(np.zeros((3, 4), "int32"), 0), "a seed for each sequence"),
        (
            lambda: tfopt.from_arrays((np.full(30, "a b"), np.zeros(30, int)), augment=(TokenSwap(),)),
            "augment changes sequences of tokens",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
