"""Data: splits, orders and sources."""

import shutil
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import blobs
from tfopt.data.dataset import SPLITS, hold_out


def numbered(size=100, **options):
    """Examples whose inputs are their own numbers."""
    return tfopt.from_arrays((np.arange(size, dtype="float32")[:, None], np.arange(size) % 2), **options)


def numbers(batches):
    return [int(x) for batch in batches for x in np.ravel(batch[0])]


def contents(data):
    return {split: numbers(data.batches(split)) for split in SPLITS}


# Splits


def test_splits_are_disjoint_complete_and_fixed_by_the_seed():
    splits = contents(numbered())
    assert [len(splits[each]) for each in SPLITS] == [80, 10, 10]
    assert sorted(sum(splits.values(), [])) == list(range(100))
    assert contents(numbered()) == splits
    keras.utils.set_random_seed(99)
    assert contents(numbered()) == splits
    other = contents(numbered(seed=1))
    assert sorted(sum(other.values(), [])) == list(range(100))
    assert set(other["test"]) != set(splits["test"])


def test_given_splits_are_kept_as_they_are():
    test = (np.full((7, 1), 500.0), np.zeros(7, int))
    data = tfopt.from_arrays((np.arange(50.0)[:, None], np.arange(50) % 2), test=test, validation_fraction=0.2)
    assert data.sizes == {"train": 40, "validation": 10, "test": 7}
    assert numbers(data.test) == [500] * 7
    whole = tfopt.from_arrays((np.arange(50.0)[:, None], np.arange(50) % 2), test, test)
    assert numbers(whole.batches("train")) == list(range(50))


@pytest.mark.parametrize("structure", [dict, tuple, list])
def test_several_inputs_stay_together(structure):
    a, b = np.arange(40.0)[:, None], np.arange(40.0)[:, None] * 2
    x = {"a": a, "b": b} if structure is dict else structure([a, b])
    data = tfopt.from_arrays((x, np.arange(40) % 2), batch_size=8)
    for given, y in [batch for split in SPLITS for batch in data.batches(split)]:
        one, two = tf.nest.flatten(given)
        assert np.array_equal(2 * one, two)
        assert np.array_equal(one[:, 0] % 2, y)
    assert tf.nest.flatten(data.input_shape) == [1, 1]


def test_plain_lists_are_arrays():
    data = tfopt.from_arrays(([[float(each)] for each in range(20)], [0, 1] * 10))
    assert data.input_shape == (1,)
    assert sorted(sum(contents(data).values(), [])) == list(range(20))


def test_bytes_in_lists_keep_their_last_nul():
    texts = [b"%d\0" % row for row in range(20)]
    data = tfopt.from_arrays((texts, [0, 1] * 10))
    assert sorted(x for split in data.sizes for x, _ in data.examples(split).as_numpy_iterator()) == sorted(texts)


def test_sample_weights_follow_their_examples():
    x = np.arange(30, dtype="float32")
    data = tfopt.from_arrays((x[:, None], np.arange(30) % 2, x / 10), batch_size=4)
    for inputs, _, weights in data.training_batches(0):
        assert np.allclose(inputs[:, 0] / 10, weights)


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 5), (0.5, 25), (0.001, 1)])
def test_hold_out_draws_the_share_and_leaves_the_rest(fraction, count):
    def draw(seed):
        splits = hold_out(tf.data.Dataset.range(50), {"test": fraction, "validation": 0.1}, seed)
        rows = {split: list(part.as_numpy_iterator()) for split, part in splits.items()}
        assert {split: int(part.cardinality()) for split, part in splits.items()} == {
            split: len(part) for split, part in rows.items()
        }
        return rows

    rows = draw(seed=3)
    assert {split: len(part) for split, part in rows.items()} == {
        "test": count,
        "validation": 5,
        "train": 45 - count,
    }
    assert sorted(sum(rows.values(), [])) == list(range(50))
    assert draw(seed=3) == rows
    assert draw(seed=4) != rows


# Orders


def test_an_epoch_has_every_example_once_and_a_smaller_last_batch():
    data = numbered(batch_size=32)
    batches = list(data.training_batches(0))
    assert [len(y) for _, y in batches] == [32, 32, 16]
    assert data.steps_per_epoch == int(data.training_batches(0).cardinality()) == 3
    assert sorted(numbers(batches)) == contents(data)["train"]


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    orders = [numbers(numbered().training_batches(epoch)) for epoch in range(3)]
    assert len({tuple(each) for each in orders}) == 3
    # A training that begins at epoch 0 and one that resumes at epoch 1, under other global seeds.
    keras.utils.set_random_seed(77)
    data, epoch = numbered(), tf.Variable(1, dtype=tf.int64)
    stream = data.training_batches(epoch)
    assert numbers(stream) == orders[1]
    epoch.assign(2)
    assert numbers(stream) == orders[2]
    epoch.assign(0)
    assert numbers(stream) == orders[0]
    splits = numbered().splits
    other = tfopt.Data(splits, seed=1)
    assert numbers(other.training_batches(0)) not in orders


def test_train_reshuffles_and_other_batches_keep_their_order():
    data = numbered(batch_size=16)
    train = data.train
    first, second = numbers(train), numbers(train)
    assert first != second
    assert sorted(first) == sorted(second)
    assert numbers(data.validation) == numbers(data.validation) == numbers(data.batches("validation", 3))
    assert [len(y) for _, y in data.batches("test", 4)] == [4, 4, 2]


def test_fingerprint_changes_with_whatever_changes_training():
    x, y = blobs(100)

    def mark(x=x, y=y, **options):
        return tfopt.from_arrays((x, y), **options).fingerprint()

    assert mark() == mark()
    pixel, label = x.copy(), y.copy()
    pixel[50, 3, 3, 1] += 1e-3
    label[50] = (label[50] + 1) % 3
    changed = [mark(pixel), mark(y=label), mark(seed=1), mark(batch_size=7), mark(name="b"), mark(x.astype("float64"))]
    assert len({mark(), *changed}) == 7


def test_fingerprint_of_strings_is_the_same_in_each_reading():
    texts = np.array([f"word {each}" for each in range(20)])
    data = tfopt.from_arrays((texts, np.arange(20) % 2))
    assert data.fingerprint() == tfopt.from_arrays((texts, np.arange(20) % 2)).fingerprint()
    assert data.fingerprint() != tfopt.from_arrays((texts[::-1], np.arange(20) % 2)).fingerprint()


# as_data


def batched(size=50, batch_size=8):
    x, y = np.arange(size, dtype="float32")[:, None], np.arange(size) % 2
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)


def test_as_data_takes_what_users_hold(data):
    x, y = np.arange(50, dtype="float32")[:, None], np.arange(50) % 2
    assert tfopt.as_data(data) is data
    assert tfopt.as_data((x, y)).sizes == {"train": 40, "validation": 5, "test": 5}
    assert tfopt.as_data([x, y]).sizes["train"] == 40
    assert len(tfopt.as_data((x, y, np.ones(50))).element_spec) == 3
    pairs = tfopt.as_data(((x, y), (x[:20], y[:20])))
    assert pairs.sizes == {"train": 45, "validation": 5, "test": 20}
    assert tfopt.as_data({"train": (x, y), "validation": (x[:9], y[:9])}).sizes["validation"] == 9


def test_as_data_takes_batched_datasets():
    data = tfopt.as_data(batched())
    assert (data.sizes, data.batch_size) == ({"train": 40, "validation": 5, "test": 5}, 8)
    assert sorted(sum(contents(data).values(), [])) == list(range(50))
    unknown = batched().filter(lambda x, y: True)
    assert tfopt.as_data({"train": unknown, "test": batched(12)}).sizes == {"train": 45, "validation": 5, "test": 12}


DATASETS = {
    "must be a tfopt.Data.*received int": (TypeError, lambda: 3),
    "must be a tfopt.Data.*received ndarray": (TypeError, lambda: np.zeros((4, 2))),
    r"must map from train.*received training": (ValueError, lambda: {"training": batched()}),
    "train must be .x, y..*received": (ValueError, lambda: {"train": batched(), "test": (np.ones(3), np.ones(3))}),
    "must give .x, y. or .x, y, sample_weight.": (ValueError, lambda: tf.data.Dataset.range(9).batch(3)),
    r"must be batched: call .batch\(n\)": (ValueError, lambda: batched().unbatch()),
    "dataset must be batched": (
        ValueError,
        lambda: tf.data.Dataset.from_tensor_slices((np.ones((9, 8, 8)), np.ones((9, 3)))),
    ),
    r"the train dataset is endless: remove .repeat\(\)": (ValueError, lambda: batched().repeat()),
    "cannot draw the validation split: there are no training": (ValueError, lambda: batched().take(0)),
    "the test split of 'data' is empty": (ValueError, lambda: {"train": batched(), "test": batched().take(0)}),
    r"as many rows each, received \[4, 5\]": (ValueError, lambda: (np.ones((4, 2)), np.ones(5))),
    "received a single number": (ValueError, lambda: (np.ones((4, 2)), 1)),
    "there are no training examples": (ValueError, lambda: (np.ones((0, 2)), np.ones(0))),
}


@pytest.mark.parametrize("message", DATASETS)
def test_as_data_refuses_with_the_reason(message):
    error, make = DATASETS[message]
    with pytest.raises(error, match=message):
        tfopt.as_data(make())


def test_data_refuses_what_cannot_be_a_task():
    with pytest.raises(ValueError, match="batch_size must be at least 1, received 0"):
        numbered(batch_size=0)
    with pytest.raises(ValueError, match="splits must be train, validation, test, received train"):
        tfopt.Data({"train": tf.data.Dataset.range(3)})
    endless = dict.fromkeys(SPLITS, tf.data.Dataset.range(3).repeat())
    with pytest.raises(ValueError, match=r"no known, finite size .cardinality -1."):
        tfopt.Data(endless)
    with pytest.raises(ValueError, match=r"test_fraction must be in \(0, 1\), received 1.5"):
        numbered(test_fraction=1.5)
    with pytest.raises(ValueError, match="split must be one of train, validation, test, received 'valid'"):
        numbered().batches("valid")


# TFDS


def test_digits_from_disk(digits, digits_dir):
    assert digits.sizes == {"train": 1294, "validation": 144, "test": 359}
    assert digits.class_names == tuple("0123456789")
    x, y = next(iter(digits.test))
    assert (x.shape, x.dtype, y.dtype) == ((64, 8, 8, 1), tf.float32, tf.int64)
    assert (x.numpy().min(), x.numpy().max()) == (0, 1)
    written = {path: path.stat().st_mtime_ns for path in digits_dir.rglob("*")}
    again = tfopt.from_tfds("digits", digits_dir, batch_size=64)
    assert {path: path.stat().st_mtime_ns for path in digits_dir.rglob("*")} == written
    assert again.fingerprint() == digits.fingerprint()


def test_value_range_scales_pixels(digits, digits_dir):
    x = next(iter(digits.test))[0].numpy()
    signed = tfopt.from_tfds("digits", digits_dir, value_range=(-1, 1))
    assert np.allclose(next(iter(signed.test))[0], 2 * x - 1, atol=1e-6)
    raw = tfopt.from_tfds("digits", digits_dir, value_range=(0, 255))
    assert np.array_equal(next(iter(raw.test))[0], np.round(x * 255))


@pytest.mark.parametrize(
    ("name", "download", "error", "message"),
    [
        ("mnits", False, ValueError, "unknown dataset 'mnits'; did you mean mnist"),
        ("digitz", False, ValueError, r"did you mean digits.*on disk in .*: digits\)"),
        ("mnist", False, FileNotFoundError, "not prepared in .*there: digits.*pass data_dir=.*download=True"),
        ("mnist", True, ConnectionError, "cannot download the dataset 'mnist': storage.googleapis.com is out of reach"),
    ],
)
def test_a_set_that_cannot_be_had_is_an_error_within_five_seconds(
    name, download, error, message, digits_dir, monkeypatch
):
    # No network: whatever the machine has, nothing listens on this port.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(error, match=message):
        tfopt.from_tfds(name, digits_dir, download=download)
    assert time.monotonic() - started < 5


def write_set(folder, name, features, splits, supervised=None):
    """Prepares a TFDS set of the user's own."""
    import tensorflow_datasets as tfds

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            made = tfds.features.FeaturesDict(features(tfds.features))
            return tfds.core.DatasetInfo(builder=self, features=made, supervised_keys=supervised)

        def _split_generators(self, dl_manager):
            return {split: enumerate(examples) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Own.name = name
    Own(data_dir=folder).download_and_prepare()


def grey(value, label, side=4):
    return {"image": np.full((side, side, 1), value, "uint8"), "label": label}


def test_a_users_own_set_keeps_its_validation_split(tmp_path):
    def features(kinds):
        return {"image": kinds.Image(shape=(4, 4, 1)), "label": kinds.ClassLabel(names=["cat", "dog"])}

    splits = {
        "train": [grey(each, each % 2) for each in range(20)],
        "validation": [grey(100 + each, each % 2) for each in range(6)],
        "test": [grey(200, 1)] * 3,
    }
    write_set(tmp_path, "pets", features, splits, ("image", "label"))
    data = tfopt.from_tfds("pets", tmp_path, value_range=(0, 255))
    assert data.sizes == {"train": 20, "validation": 6, "test": 3}
    assert data.class_names == ("cat", "dog")
    assert sorted(x.numpy().max() for x, _ in data.splits["validation"]) == list(range(100, 106))
    prepared = tmp_path / "pets" / "1.0.0"
    shutil.copytree(prepared, tmp_path / "pets" / "incomplete.X_1.0.0")
    assert tfopt.from_tfds("pets", tmp_path, value_range=(0, 255)).fingerprint() == data.fingerprint()
    shutil.copytree(prepared, tmp_path / "pets" / "small" / "1.0.0")
    with pytest.raises(ValueError, match="'pets' is there in several configs: choose pets or pets/small"):
        tfopt.from_tfds("pets", tmp_path)
    write_set(tmp_path, "bare", features, {"train": splits["train"]})
    bare = tfopt.from_tfds("bare", tmp_path, validation_fraction=0.2)
    assert bare.sizes == {"train": 12, "validation": 4, "test": 4}
    seen = [int(x.numpy().max()) for split in SPLITS for x, _ in bare.splits[split]]
    assert sorted(seen) == list(range(20))


def test_sets_that_are_no_image_classification_are_refused(tmp_path):
    splits = {"train": [grey(0, 0), grey(1, 1)]}
    write_set(tmp_path, "unlabelled", lambda kinds: {"image": kinds.Image(shape=(4, 4, 1)), "label": np.int64}, splits)
    with pytest.raises(
        ValueError, match=r"'unlabelled' is no image classification set: expected one .* it has .*image \(Image\)"
    ):
        tfopt.from_tfds("unlabelled", tmp_path)
    unequal = {"train": [grey(0, 0), grey(1, 1, side=5)]}
    write_set(
        tmp_path,
        "unequal",
        lambda kinds: {"image": kinds.Image(shape=(None, None, 1)), "label": kinds.ClassLabel(num_classes=2)},
        unequal,
    )
    with pytest.raises(ValueError, match=r"images of 'unequal' differ in size \(shape \(None, None, 1\)\)"):
        tfopt.from_tfds("unequal", tmp_path)
