"""HDF5 files give what arrays give, row by row, from many threads."""

import h5py
import numpy as np
import pytest

import tfopt
from tfopt.data import from_hdf5

ROWS = 60


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file.create_dataset("x", data=rng.normal(size=(ROWS, 5)).astype("float32"), chunks=(4, 5), compression="gzip")
        file["y"], file["who"] = np.arange(ROWS) % 3, np.arange(ROWS) // 6
        file["inner/big_endian"] = np.arange(ROWS * 2).reshape(ROWS, 2).astype(">i4")
        file["swapped"] = (np.arange(ROWS) % 3).astype(">i8")
        file["text"], file["word"] = [f"ä {row}" for row in range(ROWS)], ["yes", "no"] * (ROWS // 2)
        file["one"], file["short"] = 1.0, np.zeros(7)
        file["pairs"] = np.zeros(ROWS, [("a", "f4"), ("b", "f4")])
    return tmp_path / "set.h5"


def arrays(path, *names):
    with h5py.File(path) as file:
        return tuple(file[name][()] for name in names)


def test_a_file_gives_what_arrays_give(path):
    x, y, who = arrays(path, "x", "y", "who")
    expected = tfopt.from_arrays((x, y), groups=who, seed=4, batch_size=7)
    data = from_hdf5(path, groups="who", seed=4, batch_size=7)
    assert (data.name, data.input_shape) == ("set", (5,))
    for epoch in (0, 1):
        batches = [each.training_batches(epoch).as_numpy_iterator() for each in (expected, data)]
        for one, other in zip(*batches, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_type_as_it_was_written(path):
    (x,) = arrays(path, "inner/big_endian")
    found = [
        row
        for split in ("train", "validation", "test")
        for row, _ in from_hdf5(path, "inner/big_endian").examples(split)
    ]
    assert sorted(row.numpy().tolist() for row in found) == x.tolist()
    texts = from_hdf5(path, "text", "word")
    assert texts.class_names == ("no", "yes")
    for text, label in texts.examples("train").as_numpy_iterator():
        assert label == 1 - int(text.decode().split()[1]) % 2
    assert {int(y) for _, y in from_hdf5(path, y="swapped").examples("train")} == {0, 1, 2}


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
@pytest.mark.parametrize("kind", ["S", object])
def test_words_are_labels_however_they_are_written(kind, shape, tmp_path):
    words = np.array([b"ja", "nö".encode()] * (ROWS // 2)).astype(kind)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["x"], file["y"] = np.arange(ROWS), words.reshape(shape)
    data = from_hdf5(tmp_path / "set.h5")
    assert data.class_names == ("ja", "nö")
    assert all(x % 2 == y for x, y in data.examples("train").as_numpy_iterator())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"x": "X_"}, r"has no array 'X_': There are inner/big_endian, one"),
        ({"y": "wrod"}, r"has no array 'wrod': did you mean word\?"),
        ({"x": "inner"}, "has no array 'inner'"),
        ({"y": "short"}, r"received shapes \(60, 5\) and \(7,\)"),
        ({"x": "one"}, r"received shapes \(\)"),
        ({"x": "pairs"}, "pairs in .* holds .*: arrays of numbers and of text are read"),
    ],
)
def test_bad_names(names, message, path):
    with pytest.raises(ValueError, match=message):
        from_hdf5(path, **names)


def test_bad_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        from_hdf5(tmp_path / "none.h5")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        from_hdf5(tmp_path / "cut.h5")
