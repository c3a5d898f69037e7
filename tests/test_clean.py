"""Cleaning: what is found, what is left out of which split, what is repaired, and what is learned from where."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfopt
from tfopt.data import clean
from tfopt.data.stage import Clean

CLASSES = ("n", "p")


def splits(x, y, **options):
    """Data of 20 training, 6 validation and 6 test examples."""
    parts = np.split(np.arange(32), [20, 26])
    train, validation, test = ((x[rows], y[rows]) for rows in parts)
    return tfopt.from_arrays(train, validation, test, **{"class_names": CLASSES, "batch_size": 8, **options})


def columns():
    return np.random.default_rng(0).normal(size=(32, 4)).astype("float32"), np.arange(32) % 2


def inputs(data, split):
    return np.array([x for x, _ in data.examples(split).as_numpy_iterator()])


def test_clean_data_stay_as_they_are():
    data = splits(*columns())
    assert clean(data).sizes == data.sizes
    for on_bad in ("raise", "skip", "repair"):
        assert clean(data, on_bad).skipped == {}
        assert clean(data, on_bad).fingerprint() == data.fingerprint()


def test_a_copy_in_training_goes_and_what_measures_stays():
    x, y = columns()
    x[3], x[22], x[7] = x[28], x[29], x[24]  # train[3] is test[2], validation[2] is test[3], train[7] validation[4]
    x[10] = x[5]  # train[10] is train[5], and their labels differ
    data = splits(x, y)
    with pytest.raises(ValueError, match=r"train\[3\] of 'data' cannot be used: equal to test\[2\]") as error:
        clean(data)
    assert "1 copies within a split" in str(error.value)
    assert "3 copies across splits" in str(error.value)
    found = clean(data, "skip")
    assert found.skipped == {
        "train[3]": "equal to test[2], whose label is 0 and not 1",
        "train[7]": "equal to validation[4], whose label is 0 and not 1",
        "train[10]": "equal to train[5], whose label is 1 and not 0",
        "validation[2]": "equal to test[3], whose label is 1 and not 0",
    }
    assert found.sizes == {"train": 17, "validation": 5, "test": 6}
    np.testing.assert_array_equal(inputs(found, "train"), np.delete(x[:20], [3, 7, 10], 0))
    np.testing.assert_array_equal(inputs(found, "validation"), np.delete(x[20:26], 2, 0))
    assert clean(found).fingerprint() == found.fingerprint()
    batches = [x.numpy() for x, _ in found.training_batches(2)]
    assert sum(map(len, batches)) == 17
    assert found.steps_per_epoch == len(batches) == 3


def test_what_has_no_label_is_no_original():
    x, y = columns()
    x[3], y[28], y[4] = x[28], -1, 7
    found = clean(splits(x, y), "skip")
    assert found.skipped == {
        "train[4]": "its label is 7, expected 0 to 1",
        "test[2]": "its label is -1, expected 0 to 1",
    }
    assert clean(splits(x, y, class_names=()), "skip", max_imbalance=20).skipped.keys() == {"test[2]"}


def test_labels_beyond_int64_are_out_of_range():
    x, y = columns()
    y = y.astype("uint64")
    y[3] = 2**63 + 5
    found = clean(splits(x, y), "skip")
    assert found.skipped == {"train[3]": "its label is 9223372036854775813, expected 0 to 1"}
    assert clean(splits(x, y, class_names=()), "skip").skipped.keys() == {"train[3]"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_columns_are_repaired_by_medians_of_training(value):
    x, y = columns()
    x[26:] += 1000.0  # would show in medians of all splits
    x[2, 1] = x[28, 1] = x[29, 3] = value
    data = splits(x, y)
    with pytest.raises(ValueError, match=r"train\[2\] of 'data' cannot be used: its inputs hold NaN or infinity"):
        clean(data)
    assert list(clean(data, "skip").skipped) == ["train[2]", "test[2]", "test[3]"]
    repaired = clean(data, "repair")
    assert repaired.skipped == {}
    assert repaired.sizes == data.sizes
    median = np.median(np.delete(x[:20], 2, 0)[:, 1])
    expected = x.copy()
    expected[2, 1] = expected[28, 1] = median
    expected[29, 3] = np.median(x[:20, 3])
    for split, rows in {"train": slice(20), "validation": slice(20, 26), "test": slice(26, 32)}.items():
        np.testing.assert_array_equal(inputs(repaired, split), expected[rows])
    # What the trained model needs for inputs of the same kind.
    (fill,) = repaired.prepared
    np.testing.assert_array_equal(fill(x), expected)
    assert clean(repaired).sizes == data.sizes


def test_nan_may_stand_for_what_is_imputed_later():
    x, y = columns()
    x[2, 1], x[3, 1] = np.nan, np.inf
    found = clean(splits(x, y), "repair", keep_nan=True)
    assert np.isnan(inputs(found, "train")[2, 1])
    assert inputs(found, "train")[3, 1] == np.float32(np.median(np.delete(x[:20], [2, 3], 0)[:, 1]))
    assert list(clean(splits(x, y), "skip", keep_nan=True).skipped) == ["train[3]"]
    x[:20, 1] = np.nan
    with pytest.raises(ValueError, match="column 1 of 'data' has no finite value in training"):
        clean(splits(x, y), "repair")


def test_images_text_and_structures():
    x, y = columns()
    signals = np.stack([x, x], 1)
    signals[5, 0, 0] = np.nan
    assert clean(splits(signals, y), "repair").skipped == {"train[5]": "its inputs hold NaN or infinity"}
    texts = np.array([f"text {row}" for row in range(32)], object)
    texts[9] = texts[30]
    assert clean(splits(texts, y), "skip").skipped == {"train[9]": "equal to test[4], whose label is 0 and not 1"}
    images = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 3)).astype("uint8")
    images[9] = images[31]
    data = dataclasses.replace(splits(images, y), read=lambda image, label: (255 - image, label))
    found = clean(data, "skip")
    assert found.skipped == {"train[9]": "equal to test[5]"}
    np.testing.assert_array_equal(inputs(found, "train"), 255 - np.delete(images[:20], 9, 0))
    parts = {
        name: {"text": texts[rows], "x": x[rows]} for name, rows in (("train", slice(20)), ("rest", slice(20, 32)))
    }
    parts["train"]["x"][9] = x[30]
    parts["train"]["x"][4, 2] = np.nan
    rest = (parts["rest"], y[20:])
    mixed = tfopt.from_arrays((parts["train"], y[:20]), rest, ({"text": texts[:3] + "!", "x": x[:3]}, y[:3]))
    found = clean(mixed, "repair", max_imbalance=20)
    assert found.skipped == {"train[9]": "equal to validation[10], whose label is 0 and not 1"}
    assert all(np.isfinite(each["x"]).all() for each, _ in found.examples("train").as_numpy_iterator())


def test_bytes_that_differ_in_nothing_but_a_nul_at_the_end_are_no_copies():
    texts = np.array([b"%d" % (row // 2) + b"\0" * (row % 2) for row in range(32)], object)
    texts[9] = texts[30]
    found = clean(splits(texts, np.arange(32) // 2 % 2), "skip")
    assert found.skipped == {"train[9]": "equal to test[4], whose label is 1 and not 0"}


def test_targets_and_weights_must_be_finite():
    x, y = columns()
    targets = y + 0.5
    targets[4] = np.nan
    expected = {"train[4]": "its target or weight is NaN or infinite"}
    assert clean(splits(x, targets, class_names=()), "repair").skipped == expected
    x[6] = x[27]
    assert (
        clean(splits(x, targets, class_names=()), "skip").skipped["train[6]"] == "equal to test[1], with another target"
    )
    weights = np.ones(20)
    weights[5] = np.inf
    weighted = tfopt.from_arrays(
        (x[:20], y[:20], weights), (x[20:25], y[20:25], weights[:5]), (x[28:], y[28:], weights[:4])
    )
    assert clean(weighted, "skip").skipped == {"train[5]": expected["train[4]"]}
    words = np.array(["a", "b"] * 16, object)
    words[4] = ""
    assert clean(splits(x[::-1], words, class_names=()), "skip").skipped["train[4]"] == "its label is empty"


def test_imbalance_is_told(caplog):
    x, y = columns()
    y = np.where(np.arange(32) == 1, 1, 0)
    assert clean(splits(x, y), max_imbalance=19).sizes["train"] == 20
    message = "the class 'n' has 19 training examples in 'data', 'p' has 1: more than 18 times as many"
    with pytest.raises(ValueError, match=message):
        clean(splits(x, y), max_imbalance=18)
    with caplog.at_level("WARNING", "absl"):
        assert clean(splits(x, y), "skip", max_imbalance=18).sizes["train"] == 20
    assert message in caplog.text
    with pytest.raises(ValueError, match="the class 'p' has no training examples"):
        clean(splits(x, np.zeros(32, int)))
    with pytest.raises(ValueError, match="max_imbalance must be at least 1, received 0"):
        clean(splits(x, y), max_imbalance=0)


def test_a_split_may_not_vanish():
    x, y = columns()
    x[20:26] = x[26:]
    with pytest.raises(ValueError, match="no example of the validation split of 'data' can be used"):
        clean(splits(x, y), "skip")
    with pytest.raises(ValueError, match="on_bad must be one of raise, skip, repair"):
        clean(splits(x, y), "ignore")


@given(st.lists(st.integers(0, 12), min_size=20, max_size=40), st.integers(1, 8), st.integers(1, 8))
@settings(max_examples=10, deadline=None)
def test_each_example_is_left_once_in_the_split_that_measures(values, validation, test):
    values = np.array(values)
    parts = np.split(values, [len(values) - validation - test, len(values) - test])
    kept = [set(parts[2])]
    kept.insert(0, set(parts[1]) - kept[0])
    kept.insert(0, set(parts[0]) - kept[0] - kept[1])
    data = tfopt.from_arrays(*((each.astype("int32"), each / 20) for each in parts))
    if not all(kept):
        with pytest.raises(ValueError, match="can be used"):
            clean(data, "skip")
        return
    found = clean(data, "skip")
    assert [sorted(inputs(found, split).tolist()) for split in found.sizes] == [sorted(each) for each in kept]
    assert len(found.skipped) == len(values) - sum(map(len, kept))


def test_the_stage_tells_what_it_did(tmp_path):
    x, y = columns()
    x[3], x[5, 0] = x[28], np.nan
    x[9] = np.inf
    y[6], y[8] = 9, 1
    work = tfopt.run([Clean("repair", max_imbalance=1.0)], tfopt.Work(None, splits(x, y), tmp_path / "run"))
    entry = work.report.stages[0]
    assert entry.skipped == [
        {"layer": "train[3]", "reason": "equal to test[2], whose label is 0 and not 1"},
        {"layer": "train[6]", "reason": "its label is 9, expected 0 to 1"},
    ]
    assert entry.notes[0] == "2 examples left out, 2 repaired"
    assert entry.notes[1].startswith("the class 'p' has 10 training examples in 'data', 'n' has 8: more than 1 times")
    assert list(entry.changed) == ["train[5]", "train[9]"]
    assert work.data.sizes["train"] == 18
    with pytest.raises(ValueError, match=r"train\[3\]"):
        tfopt.validate([Clean()], tfopt.Work(None, splits(x, y)))
    with pytest.raises(ValueError, match="on_bad must be one of"):
        Clean("ignore")
