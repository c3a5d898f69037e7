"""TFRecord files: round trips, the order of several files, splits, and damaged records."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfopt
from tfopt.data import from_tfrecord, write_tfrecord

ROWS = 90
X, Y = np.arange(ROWS * 3, dtype="float32").reshape(ROWS, 3), np.arange(ROWS) % 3
FEATURES = {
    "x": tf.io.FixedLenFeature((3,), tf.float32),
    "y": tf.io.FixedLenFeature((), tf.int64),
}


def examples(*parts):
    return tf.data.Dataset.from_tensor_slices(parts)


def rows(data, split):
    """The rows of `X` that a split holds, in its order."""
    return [int(x[0]) // 3 for x, _ in data.examples(split).as_numpy_iterator()]


def record(**features):
    kinds = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, bytes)
        else tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        if isinstance(value, int)
        else tf.train.Feature(float_list=tf.train.FloatList(value=value))
        for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=kinds)).SerializeToString()


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for each in records:
            writer.write(each)
    return path


@pytest.mark.parametrize(("shards", "compression"), [(1, None), (10, "GZIP")])
def test_what_is_written_is_read(shards, compression, tmp_path):
    features = write_tfrecord(examples(X, Y), tmp_path / "set", shards, compression)
    assert features == FEATURES
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert names == [f"examples-{shard:05d}-of-{shards:05d}.tfrecord" for shard in range(shards)]
    options = {"compression": compression, "stratify": True, "seed": 2, "batch_size": 8}
    data = from_tfrecord(tmp_path / "set" / "*.tfrecord", features, "x", "y", **options)
    assert (data.name, data.input_shape) == ("set", (3,))
    found = {split: rows(data, split) for split in data.sizes}
    assert sorted(row for part in found.values() for row in part) == list(range(ROWS))
    for split, size in {"train": 24, "validation": 3, "test": 3}.items():
        assert np.bincount(Y[found[split]]).tolist() == [size] * 3
    for x, y in data.examples("train").as_numpy_iterator():
        assert y == Y[int(x[0]) // 3]
    again = from_tfrecord(str(tmp_path / "set" / "*"), features, "x", "y", **options, cache=False)
    assert {split: rows(again, split) for split in data.sizes} == found
    one, other = ([x.numpy().tobytes() for x, _ in each.training_batches(3)] for each in (data, again))
    assert one == other
    if shards == 1:
        assert found["train"] == sorted(found["train"])


def test_splits_and_images_of_data_come_back(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4, 6, 3)).astype("uint8")
    data = tfopt.from_arrays((pixels, np.arange(30) % 2))
    features = write_tfrecord(data, tmp_path / "set", 2)
    paths = {split: tmp_path / "set" / f"{split}-*" for split in data.sizes}
    found = from_tfrecord(paths, features, "x", "y", image_size=(4, 6), class_names=("a", "b"))
    assert (found.sizes, found.class_names) == (data.sizes, ("a", "b"))
    for split in data.sizes:
        one, other = (
            {(x.tobytes(), int(y)) for x, y in each.examples(split).as_numpy_iterator()} for each in (data, found)
        )
        assert one == other
    batch, _ = next(iter(found.train))
    assert (batch.dtype, batch.shape) == (tf.float32, (24, 4, 6, 3))
    assert 0 <= batch.numpy().min() <= batch.numpy().max() <= 1
    with pytest.raises(FileExistsError, match="is there already"):
        write_tfrecord(data, tmp_path / "set")


def test_dicts_text_weights_and_groups(tmp_path):
    texts = np.array([f"ä {row}" for row in range(20)], object)
    x = {"text": texts, "flags": np.arange(40).reshape(20, 2) % 3 == 0}
    features = write_tfrecord(examples(x, np.arange(20.0), np.arange(20) // 4), tmp_path / "set")
    data = from_tfrecord(tmp_path / "set" / "*", features, ["text", "flags"], "y", groups="weight")
    groups = []
    for split in data.sizes:
        for inputs, y in data.examples(split).as_numpy_iterator():
            assert inputs["text"].decode() == texts[int(y)]
            assert inputs["flags"].tolist() == x["flags"][int(y)].astype(int).tolist()
        groups.append({int(y) // 4 for _, y in data.examples(split).as_numpy_iterator()})
    assert sum(map(len, groups)) == len(set.union(*groups)) == 5


def test_bytes_keep_their_last_nul(tmp_path):
    texts = np.array([b"%d\0" % row for row in range(20)], object)
    features = write_tfrecord(examples(texts, np.arange(20)), tmp_path / "set")
    data = from_tfrecord(tmp_path / "set" / "*", features, "x", "y")
    for split in data.sizes:
        assert all(x == texts[y] for x, y in data.examples(split).as_numpy_iterator())


def test_a_failed_write_leaves_nothing(tmp_path):
    def fails():
        yield np.zeros(3, "float32"), 0
        raise RuntimeError("no more")

    spec = (tf.TensorSpec((3,), tf.float32), tf.TensorSpec((), tf.int32))
    with pytest.raises(tf.errors.UnknownError, match="no more"):
        write_tfrecord(tf.data.Dataset.from_generator(fails, output_signature=spec), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def damaged(path, number):
    """Changes a byte of the data of one record."""
    content, offset = bytearray(path.read_bytes()), 0
    for _ in range(number):
        offset += 16 + struct.unpack_from("<Q", content, offset)[0]
    content[offset + 14] ^= 0xFF
    path.write_bytes(content)


def test_damaged_records_are_named(tmp_path):
    paths = [
        write(
            tmp_path / f"{part}.tfrecord", [record(x=x, y=int(y)) for x, y in zip(X[part::3], Y[part::3], strict=True)]
        )
        for part in range(3)
    ]
    damaged(paths[1], 20)
    paths[2].write_bytes(paths[2].read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"record 20 of .*1\.tfrecord cannot be used: it is damaged, and what follows"):
        from_tfrecord(paths, FEATURES, "x", "y")
    data = from_tfrecord(paths, FEATURES, "x", "y", on_bad="skip")
    assert list(data.skipped) == [f"{paths[1]}[20]", f"{paths[2]}[29]"]
    found = sorted(row for split in data.sizes for row in rows(data, split))
    assert found == sorted({*range(0, ROWS, 3), *range(1, 61, 3), *range(2, 89, 3)})
    for each in data.batches("train"):
        assert np.isfinite(each[0]).all()
    with pytest.raises(ValueError, match="record 0 of .*; is it compressed in that way"):
        from_tfrecord(paths, FEATURES, "x", "y", compression="GZIP")


def test_records_that_do_not_hold_the_features(tmp_path):
    good = [record(x=x, y=int(y)) for x, y in zip(X, Y, strict=True)]
    good[7], good[50] = b"no example", record(x=X[0])
    path = write(tmp_path / "set.tfrecord", good)
    with pytest.raises(ValueError, match="record 7 of .*set.tfrecord cannot be used: it does not hold the features"):
        from_tfrecord(path, FEATURES, "x", "y")
    for cache in (True, False):
        data = from_tfrecord(path, FEATURES, "x", "y", on_bad="skip", cache=cache)
        assert list(data.skipped) == [f"{path}[7]", f"{path}[50]"]
        assert sorted(row for split in data.sizes for row in rows(data, split)) == sorted(set(range(ROWS)) - {7, 50})


def png(seed, mode="RGB"):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype("uint8")
    Image.fromarray(pixels).convert(mode).save(out, "PNG")
    return out.getvalue()


def test_images_that_cannot_be_used(tmp_path):
    contents = [png(row) for row in range(20)]
    contents[4], contents[11] = contents[4][:60], png(11, "L")
    path = write(tmp_path / "set.tfrecord", [record(image=each, y=row % 2) for row, each in enumerate(contents)])
    features = {"image": tf.io.FixedLenFeature((), tf.string), "y": FEATURES["y"]}
    with pytest.raises(ValueError, match="record 4 of .* cannot be used: it is damaged"):
        from_tfrecord(path, features, "image", "y", image_size=(6, 8))
    for on_bad, names in (("skip", ["4", "11"]), ("repair", ["4"])):
        data = from_tfrecord(path, features, "image", "y", image_size=(6, 8), on_bad=on_bad)
        assert list(data.skipped) == [f"{path}[{name}]" for name in names]
        assert sum(len(list(data.examples(split))) for split in data.sizes) == 20 - len(names)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"paths": "none-*"}, FileNotFoundError, "there is no file none-"),
        ({"x": "X"}, ValueError, "there is no feature 'X': There are x, y"),
        ({"y": "yy"}, ValueError, r"there is no feature 'yy': did you mean y\? There are x, y"),
        (
            {"features": {"x": tf.io.VarLenFeature(tf.int64), "y": FEATURES["y"]}},
            ValueError,
            "'x' must be a .*FixedLen",
        ),
        ({"x": ["x"], "image_size": (8, 8)}, ValueError, "image_size is for x with the name of one feature"),
        ({"features": {**FEATURES, "y": tf.io.FixedLenFeature((), tf.string)}}, ValueError, "the labels 'y' are text"),
        ({"paths": {"test": "a"}}, ValueError, r"paths must be given by train, validation, test"),
        ({"paths": []}, FileNotFoundError, "paths name no file"),
        ({"paths": {"train": [], "test": "a"}}, FileNotFoundError, "paths name no file"),
        ({"x": []}, ValueError, "x must name a feature, or several"),
        ({"features": {**FEATURES, "y": tf.io.FixedLenFeature((0,), tf.int64)}}, ValueError, "'y' must hold a value"),
        ({"on_bad": "ignore"}, ValueError, "on_bad must be one of"),
        (
            {"features": {**FEATURES, "x": tf.io.FixedLenFeature((4,), tf.float32)}, "on_bad": "skip"},
            ValueError,
            "no good",
        ),
        ({"validation_fraction": 2}, ValueError, r"validation_fraction must be in \(0, 1\)"),
    ],
)
def test_bad_arguments(options, error, message, tmp_path):
    write_tfrecord(examples(X, Y), tmp_path / "set")
    with pytest.raises(error, match=message):
        from_tfrecord(**{"paths": tmp_path / "set" / "*", "features": FEATURES, "x": "x", "y": "y", **options})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (examples((X, X), Y), "x one tensor or a dict of them"),
        (examples(X), r"examples must be \(x, y\)"),
        (examples(X, Y).batch(4), "must have a full shape"),
        (examples({"x": X, "y": X}, Y), r"the inputs are called x, y: 'y' is the name of something else"),
        (examples(X, np.full(ROWS, 2**63 + 5, "uint64")), "'y' holds 9223372036854775813, more than int64 does"),
        (examples(X.astype("complex64"), Y), "'x' must be numbers or text, it is complex64"),
    ],
)
def test_what_cannot_be_written(source, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_tfrecord(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()
