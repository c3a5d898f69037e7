"""What would spoil training is found before it, with the first bad example."""

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs, small_model
from tfopt.data import check_data
from tfopt.data.dataset import SPLITS


def poisoned(split="train", row=17, value=np.nan):
    x, y = blobs(60)
    spoilt = x.copy()
    spoilt[row, 2, 2, 0] = value
    arrays = {each: (x, y) for each in SPLITS} | {split: (spoilt, y)}
    return tfopt.from_arrays(**arrays, batch_size=8)


def labelled(labels, **options):
    return tfopt.from_arrays(*[(blobs(len(labels))[0], np.asarray(labels))] * 3, batch_size=4, **options)


@pytest.mark.parametrize(
    ("split", "row", "value"), [("train", 17, np.nan), ("validation", 59, np.inf), ("test", 0, -np.inf)]
)
def test_bad_inputs_are_found_with_their_example(split, row, value):
    with pytest.raises(ValueError, match=f"inputs of 'data' hold NaN or inf.* in the {split} split, example {row};"):
        check_data(poisoned(split, row, value))


def test_bad_targets_and_weights_are_found():
    x, y = np.ones((40, 2)), np.ones(40)
    bad = y.copy()
    bad[11] = np.nan
    with pytest.raises(ValueError, match=r"targets of 'data' hold NaN .* train split, example 11;"):
        check_data(tfopt.from_arrays((x, bad), (x, y), (x, y)))
    with pytest.raises(ValueError, match=r"sample weights of 'data' hold NaN .* train split, example 11;"):
        check_data(tfopt.from_arrays((x, y, bad), (x, y, y), (x, y, y)))


def test_words_are_no_targets():
    words = np.array(["n", "p"])[np.arange(20) % 2]
    with pytest.raises(ValueError, match=r"targets of 'data' are text: .*np.unique\(y, return_inverse=True\)"):
        check_data(tfopt.from_arrays((np.ones((20, 2)), words)))


def test_labels_out_of_range_are_found():
    with pytest.raises(ValueError, match=r"label 3 of 'data' is out of range: .*example 6; expected .* 0 to 2$"):
        check_data(labelled([0, 1, 2, 0, 1, 2, 3, 0]), small_model())
    with pytest.raises(ValueError, match=r"label 2 .* 0 to 1$"):
        check_data(labelled([0, 1, 1, 2], class_names=("a", "b")))
    with pytest.raises(ValueError, match=r"label -1 .*example 3; expected integers from 0 to the number"):
        check_data(labelled([0, 1, 1, -1]))
    binary = keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"label 2 .* 0 to 1$"):
        check_data(labelled([0, 1, 1, 2]), binary)
    binary.compile("sgd", "mse")
    assert check_data(labelled([0, 1, 1, 2]), binary)["train"] == 4


def test_one_class_only_is_refused():
    with pytest.raises(ValueError, match=r"train split of 'data' has one class only \(label 2\)"):
        check_data(labelled([2] * 10), small_model())


def test_good_data_pass(data):
    assert check_data(data, small_model()) == data.sizes
    assert check_data(data, small_model(), max_examples=30) == {"train": 48, "validation": 24, "test": 24}
    assert check_data(labelled(np.array([[0], [1], [2], [1]], "uint8")), small_model())["test"] == 4


def two_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    return keras.Model([a, b], keras.layers.Dense(2)(keras.layers.Concatenate()([a, b])), name="pair")


def give(x):
    return tfopt.from_arrays((x, np.arange(20) % 2))


def test_shapes_and_names_are_compared_with_the_model():
    wide, narrow = np.ones((20, 3)), np.ones((20, 2))
    pair = two_inputs()
    assert check_data(give((wide, narrow)), pair)
    assert check_data(give({"b": narrow, "a": wide}), pair)
    with pytest.raises(ValueError, match=r"'small' takes examples of shape \(8, 8, 2\) .*'image', .* give \(3,\)"):
        check_data(give(wide), small_model())
    with pytest.raises(ValueError, match=r"shape \(3,\) at its input 'a', .* give \(2,\)"):
        check_data(give((narrow, wide)), pair)
    with pytest.raises(ValueError, match="'pair' has 2 inputs, the data 'data' give 1"):
        check_data(give(wide), pair)
    with pytest.raises(ValueError, match="'pair' wants the inputs a, b; the data give a, c"):
        check_data(give({"a": wide, "c": narrow}), pair)
    flexible = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(5, 2)])
    assert check_data(give(wide), flexible)
