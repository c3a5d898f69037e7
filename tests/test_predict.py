"""Batch prediction: what is read of each kind of input, and what is refused."""

import io
import pathlib
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from tfopt.data import from_tfrecord, write_tfrecord
from tfopt.predict.inputs import find, open_input
from tfopt.predict.outputs import check_classes
from tfopt.serve.description import Description, TensorInfo

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3)).astype("uint8")
NUMBERS = np.random.default_rng(1).normal(size=(300, 4)).astype("float32")


def encoded(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def description(*inputs, metadata=None):
    """Of a model with these inputs: (name, shape without the batch, dtype)."""
    infos = tuple(TensorInfo(name, (-1, *shape), dtype, dtype) for name, shape, dtype in inputs)
    return Description("litert", infos, (TensorInfo("y", (-1, 3), "float32", "float32"),), -1, metadata or {})


IMAGE = description(("image", (4, 4, 3), "float32"))
VECTOR = description(("x", (4,), "float32"))


def opened(given, model=VECTOR, **options):
    defaults = {"kind": None, "features": {}, "id": None, "on_bad": "skip", "image_size": None, "value_range": None}
    source = open_input(given, model, **{**defaults, **options})
    # As in a worker.
    return pickle.loads(pickle.dumps(source))


def pictures(folder, count=9):
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[number % 2] / f"{number}.png").write_bytes(encoded(PIXELS[number]))
    return folder


# What is read


@pytest.mark.parametrize("is_archive", [False, True])
def test_images_are_read_as_data_reads_them(is_archive, tmp_path):
    folder = pictures(tmp_path / "photos")
    if is_archive:
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for path in sorted(folder.rglob("*.png")):
                archive.write(path, path.relative_to(tmp_path))
        folder = tmp_path / "photos.zip"
    source = opened(folder, IMAGE, value_range=(-1.0, 1.0))
    found = source.read(0, source.rows)
    numbers = [int(pathlib.Path(name).stem) for name in found.ids]
    assert found.ids[:2] == ["a/0.png", "a/2.png"]
    features = {"x": tf.io.FixedLenFeature((), tf.string), "y": tf.io.FixedLenFeature((), tf.int64)}
    path = tmp_path / "same.tfrecord"
    write_examples(path, [{"x": [encoded(PIXELS[number])], "y": [place]} for place, number in enumerate(numbers)])
    splits = {"train": path, "validation": path, "test": path}
    data = from_tfrecord(splits, features, "x", "y", image_size=(4, 4), value_range=(-1.0, 1.0), class_names="a" * 9)
    (expected, _) = next(iter(data.batches("test", 9)))
    np.testing.assert_array_equal(found.inputs["image"], expected)
    records = opened(path, IMAGE, value_range=(-1.0, 1.0)).read(3, 7)
    assert records.ids == [f"same.tfrecord[{row}]" for row in range(3, 7)]
    np.testing.assert_array_equal(records.inputs["image"], expected[3:7])


def write_examples(path, examples, compression=""):
    kinds = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for example in examples:
            found = tf.train.Example()
            for name, values in example.items():
                getattr(found.features.feature[name], kinds[type(values[0])]).value.extend(values)
            writer.write(found.SerializeToString())
    return path


def test_the_range_of_pixels_is_that_of_the_file_or_of_the_type(tmp_path):
    folder = pictures(tmp_path, 2)
    plain = opened(folder, IMAGE).read(0, 1).inputs["image"]
    assert (plain.min() >= 0, plain.max() <= 1) == (True, True)
    told = description(("image", (4, 4, 3), "float32"), metadata={"preprocessing": {"value_range": [0, 255]}})
    pixels = opened(folder, told).read(0, 1).inputs["image"]
    np.testing.assert_array_equal(pixels, np.rint(plain * 255))
    whole = opened(folder, description(("image", (4, 4, 3), "uint8"))).read(0, 1).inputs["image"]
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, pixels)


def test_files_that_are_no_images_are_bad_rows(tmp_path):
    folder = pictures(tmp_path, 2)
    (folder / "c.png").write_bytes(encoded(PIXELS[0])[:60])
    (folder / "d.txt").write_text("labels")
    (folder / "e.png").write_bytes(encoded(PIXELS[0, :, :, 0]))
    (folder / ".hidden").write_text("x")
    found = opened(folder, IMAGE).read(0, 5)
    assert {found.ids[place]: fault.split("(")[0].strip() for place, fault in found.faults.items()} == {
        "c.png": "it is damaged",
        "d.txt": "it is no image",
        "e.png": "channels of mode L, where RGB is expected",
    }
    assert found.inputs["image"].shape == (2, 4, 4, 3)
    assert list(opened(folder, IMAGE, on_bad="repair").read(4, 5).faults) == []


@pytest.mark.parametrize("compression", ["", "GZIP", "ZLIB"])
def test_records_of_any_compression_are_read_in_any_range(compression, tmp_path):
    examples = tf.data.Dataset.from_tensor_slices((NUMBERS[:50], np.arange(50)))
    write_tfrecord(examples, tmp_path / "set", 3, compression or None)
    source = opened(tmp_path / "set")
    assert [file.rows for file in source.files] == [17, 17, 16]
    whole = source.read(0, 50).inputs["x"]
    np.testing.assert_array_equal(whole, np.concatenate([NUMBERS[shard:50:3] for shard in range(3)]))
    for start, stop in ((0, 1), (16, 18), (30, 50)):
        np.testing.assert_array_equal(source.read(start, stop).inputs["x"], whole[start:stop])


def test_records_without_the_feature_and_damaged_ones(tmp_path):
    good = {"x": [1.0, 2.0, 3.0, 4.0]}
    path = write_examples(tmp_path / "a.tfrecord", [good, {"x": [1.0]}, {"x": [float("nan")] * 4}, good, good])
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))
    write_examples(tmp_path / "b.tfrecord", [good])
    found = opened(tmp_path / "*.tfrecord").read(0, 6)
    assert found.ids[4:] == ["a.tfrecord[4]", "b.tfrecord[0]"]
    assert list(found.faults) == [1, 2, 4]
    for place, words in ((1, "does not hold the features"), (2, "NaN"), (4, "what follows it in its file is lost")):
        assert words in found.faults[place]
    assert len(found.inputs["x"]) == 3
    with pytest.raises(ValueError, match=r"record 4 of .*a.tfrecord cannot be used: it is damaged"):
        opened(tmp_path / "*.tfrecord", on_bad="raise")
    with pytest.raises(ValueError, match=r"no feature 'z': There are x"):
        opened(tmp_path / "b.tfrecord", features={"x": "z"})


def test_records_that_are_no_examples_are_bad_rows(tmp_path):
    write_examples(tmp_path / "b.tfrecord", [{"x": [1.0, 2.0, 3.0, 4.0]}])
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for record in (b"no example", b"", *tf.data.TFRecordDataset(str(tmp_path / "b.tfrecord")).as_numpy_iterator()):
            writer.write(record)
    for on_bad in ("skip", "raise"):
        found = opened(tmp_path / "a.tfrecord", on_bad=on_bad).read(0, 3)
        assert list(found.faults) == [0, 1]
        assert found.inputs["x"].tolist() == [[1.0, 2.0, 3.0, 4.0]]
    with tf.io.TFRecordWriter(str(tmp_path / "c.tfrecord")) as writer:
        writer.write(b"no example")
    with pytest.raises(ValueError, match=r"no record in .*c.tfrecord that is a tf.train.Example with features"):
        opened(tmp_path / "c.tfrecord")


LISTS = pa.array([row.tolist() for row in NUMBERS[:20]], pa.list_(pa.float32()))
TABLES = {
    "numbers": {f"c{i}": pa.array(NUMBERS[:20, i]) for i in range(4)},
    "lists": {"x": LISTS},
    "fixed": {"x": pa.array(LISTS.to_pylist(), pa.list_(pa.float32(), 4))},
    "tensors": {"x": pa.FixedShapeTensorArray.from_numpy_ndarray(NUMBERS[:20])},
    "nested": {"x": pa.array([[row[:2], row[2:]] for row in LISTS.to_pylist()])},
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_numbers_and_lists(name, tmp_path):
    table = pa.table({**TABLES[name], "who": [f"w{i}" for i in range(20)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=6)
    pq.write_table(table, tmp_path / "u.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    source = opened(tmp_path, id="who", features={"x": "c0,c1,c2,c3"} if name == "numbers" else {})
    assert (source.rows, len(source.files)) == (40, 2)
    for start, stop in ((0, 40), (5, 7), (18, 22)):
        found = source.read(start, stop)
        assert found.ids == [f"w{row % 20}" for row in range(start, stop)]
        np.testing.assert_array_equal(found.inputs["x"], np.tile(NUMBERS[:20], (2, 1))[start:stop])


def test_rows_of_tables_that_cannot_be_used(tmp_path):
    rows = [[1.0] * 4, [1.0], None, [1.0, None, 1.0, 1.0], [1e300] * 4, [2.0] * 4]
    pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.float64()))}), tmp_path / "t.parquet")
    found = opened(tmp_path / "t.parquet").read(0, 6)
    assert {place: fault.partition(" for the")[0] for place, fault in found.faults.items()} == {
        1: "the column 'x' has 1 numbers of 4",
        2: "the column 'x' is empty",
        3: "it holds NaN or infinity",
        4: "a value",
    }
    assert found.inputs["x"][:, 0].tolist() == [1.0, 2.0]
    flags = {f"c{i}": pa.array([True, None if i == 2 else False]) for i in range(4)}
    pq.write_table(pa.table(flags), tmp_path / "flags.parquet")
    found = opened(tmp_path / "flags.parquet").read(0, 2)
    assert (list(found.faults), found.inputs["x"].tolist()) == ([1], [[1.0] * 4])
    pq.write_table(pa.table({"t": pa.array([7, 2**40])}), tmp_path / "u.parquet")
    tokens = opened(tmp_path / "u.parquet", description(("t", (1,), "int32"))).read(0, 2)
    assert tokens.faults == {1: "a value for the input 't' does not fit int32"}


def test_damaged_row_groups_are_named(tmp_path):
    pq.write_table(pa.table({"x": LISTS}), tmp_path / "t.parquet")
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[8:60] = b"\xff" * 52
    (tmp_path / "t.parquet").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"the row group 0 of .*t.parquet is damaged: "):
        opened(tmp_path / "t.parquet").read(0, 20)


def test_images_in_tables(tmp_path):
    contents = [encoded(PIXELS[0]), None, encoded(PIXELS[1])]
    structs = pa.array([None if each is None else {"bytes": each, "path": "p"} for each in contents])
    pq.write_table(pa.table({"label": [1, 2, 3], "image": structs}), tmp_path / "t.parquet")
    found = opened(tmp_path / "t.parquet", IMAGE).read(0, 3)
    assert found.faults == {1: "it is empty"}
    alone = opened(pictures(tmp_path / "photos", 2), IMAGE).read(0, 2)
    np.testing.assert_array_equal(found.inputs["image"], alone.inputs["image"])


def test_arrays_side_by_side_and_of_other_types(tmp_path):
    np.save(tmp_path / "a.npy", NUMBERS.astype(">f8"))
    np.save(tmp_path / "b.npy", np.arange(300))
    model = description(("x", (4,), "float32"), ("t", (), "int32"))
    source = opened({"x": tmp_path / "a.npy", "t": tmp_path / "b.npy"}, model)
    found = source.read(7, 9)
    np.testing.assert_array_equal(found.inputs["x"], NUMBERS[7:9])
    assert (found.inputs["t"].tolist(), found.inputs["t"].dtype) == ([7, 8], np.int32)
    source.check_unchanged(0, 300)
    np.save(tmp_path / "b.npy", np.arange(300) + 1)
    with pytest.raises(RuntimeError, match=r"a.npy was changed while it was read"):
        source.check_unchanged(0, 1)
    np.save(tmp_path / "b.npy", np.arange(299))
    with pytest.raises(ValueError, match="side by side have different lengths"):
        opened({"x": tmp_path / "a.npy", "t": tmp_path / "b.npy"}, model)
    with pytest.raises(ValueError, match="--input=x=PATH --input=t=PATH"):
        opened(tmp_path / "a.npy", model)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 3)), r"has shape \(5, 3\), expected \(rows, 4\) for the input 'x'"),
        (np.array([["a"] * 4]), "expected numbers"),
        (np.array([None]), "cannot be read as arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_at_once(array, words, tmp_path):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=words):
        opened(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("names", "given", "kind", "found"),
    [
        (["a/1.png", "b/2.JPG", "notes.txt"], "", None, ("images", None)),
        (["x.parquet", "y.parquet", "_SUCCESS"], "", None, ("parquet", 2)),
        (["a-00000-of-00002.tfrecord", "a.tfrecord-00001-of-00002", ".lock"], "", None, ("tfrecord", 2)),
        (["x.npy", "y.npy"], "y.npy", None, ("npy", 1)),
        (["x.npy", "y.npy", "z.parquet"], "*.npy", None, ("npy", 2)),
        (["x.npy", "z.parquet"], "", "parquet", ("parquet", 1)),
        (["part-1", "part-2"], "", "tfrecord", ("tfrecord", 2)),
        (["x.npy", "z.parquet"], "", None, "holds npy, parquet: give files of one kind"),
        (["x.npy", "z.txt"], "", None, "holds npy, other files: give files of one kind"),
        (["x.csv"], "x.csv", None, "holds other files"),
        (["x.npy"], "", "parquet", "has no files of kind parquet"),
        (["x.npy"], "", "text", "kind must be one of"),
    ],
)
def test_what_a_path_holds(names, given, kind, found, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    if isinstance(found, str):
        with pytest.raises(ValueError, match=found):
            find(tmp_path / given, kind)
    else:
        _, files, is_kind = find(tmp_path / given, kind)
        assert (is_kind, files and len(files)) == found


def test_models_that_do_not_fit_the_input_are_refused(tmp_path):
    folder = pictures(tmp_path / "photos", 1)
    with pytest.raises(ValueError, match=r"holds images, and the model takes 'x' of shape \(4,\)"):
        opened(folder)
    with pytest.raises(ValueError, match="pass image_size"):
        opened(folder, _open_image())
    with pytest.raises(ValueError, match="image_size is"):
        opened(folder, IMAGE, image_size=(5, 5))
    with pytest.raises(ValueError, match="id names a column"):
        opened(folder, IMAGE, id="name")
    with pytest.raises(ValueError, match="no input: image"):
        opened(folder, IMAGE, features={"picture": "x"})
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        opened(tmp_path / "nothing*")
    assert opened(folder, _open_image(), image_size=(3, 2)).read(0, 1).inputs["image"].shape == (1, 3, 2, 3)


def _open_image():
    return description(("image", (-1, -1, 3), "float32"))


@pytest.mark.parametrize(
    ("shape", "names", "fits"),
    [
        ((-1, 3), "abc", True),
        ((-1, 1), "ab", True),
        ((-1,), "ab", True),
        ((-1, -1), "ab", True),
        ((-1, 3), "ab", False),
        ((-1, 1), "abc", False),
        ((-1, 4, 4, 3), "abc", False),
        ((-1, 1), "a", False),
    ],
)
def test_class_names_must_fit_the_output(shape, names, fits):
    if fits:
        check_classes(shape, names, "y")
    else:
        with pytest.raises(ValueError, match=rf"there are {len(names)} class_names"):
            check_classes(shape, names, "y")
