"""Vectors of words from files of every kind, and where a model takes them."""

import gzip

import keras
import numpy as np
import pytest

from tfopt.text import load_embeddings, text_cnn

WORDS = ("", "[UNK]", "film", "fine", "new york", "nowhere", "[UNK2]")
VECTORS = {"fine": [0.5, -1.25, 2.0], "other": [9.0, 9.0, 9.0], "new york": [1.0, 2.0, 3.0], "film": [-1e-3, 0.0, 4.0]}


def write_vectors(folder):
    """The same vectors in each format, the first word of all given again with other values at the end."""
    lines = [f"{word} {' '.join(map(str, values))}" for word, values in VECTORS.items()] + ["fine 7 7 7"]
    text, header = "\n".join(lines) + "\n", f"{len(lines)} 3\n"
    (folder / "glove.txt").write_text(text, encoding="utf-8")
    (folder / "word2vec.vec").write_text(header + text.replace("\n", " \n"), encoding="utf-8")
    (folder / "fasttext.vec.gz").write_bytes(gzip.compress((header + text).encode()))
    np.savez(folder / "vectors.npz", words=np.array(list(VECTORS)), vectors=np.array(list(VECTORS.values())))


@pytest.mark.parametrize("name", ["glove.txt", "word2vec.vec", "fasttext.vec.gz", "vectors.npz"])
def test_vectors_are_those_of_the_file(name, tmp_path):
    write_vectors(tmp_path)
    found = load_embeddings(tmp_path / name, WORDS, size=3)
    assert found.matrix.dtype == np.float32
    assert found.matrix.shape == (7, 3)
    for row, word in enumerate(WORDS):
        if word in VECTORS:
            np.testing.assert_array_equal(found.matrix[row], np.float32(VECTORS[word]))
    assert not found.matrix[0].any()
    others = found.matrix[[1, 5, 6]]
    assert 0 < np.abs(others).min() < np.abs(others).max() < 0.05
    assert found.coverage == 3 / 5
    assert found.missing == ("nowhere", "[UNK2]")
    assert np.array_equal(load_embeddings(tmp_path / name, WORDS).matrix, found.matrix)
    other = load_embeddings(tmp_path / name, WORDS, seed=1).matrix
    assert np.array_equal((other == found.matrix).all(1), [True, False, True, True, True, False, False])
    layer = keras.layers.Embedding(7, 3, weights=[found.matrix])
    np.testing.assert_array_equal(layer(np.array([3]))[0], np.float32(VECTORS["fine"]))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("fine 1 2\nfilm 1 x\n", {}, r"line 2: .* in the vector of 'film'"),
        ("fine 1 2\nfilm 1 2\n", {"size": 3}, "have 2 dimensions, expected size=3"),
        ("2 2\nfine 1 2\nfilm 1\n", {}, r"line 3: 1 values behind the word, 2 in"),
        ("fine 1 2\nfilm nan 2\n", {}, "'film' .* holds NaN"),
        ("Fine 1 2\nFilm 1 2\n", {}, "none of the 5 words, such as film, fine, .*casing"),
        ("", {}, "none of the 5 words"),
    ],
)
def test_vectors_that_cannot_be_used(content, options, message, tmp_path):
    (tmp_path / "bad.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_embeddings(tmp_path / "bad.txt", WORDS, **options)


def test_arrays_that_are_no_vectors(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_embeddings(tmp_path / "nowhere.npz", WORDS)
    with pytest.raises(ValueError, match="no words beside padding"):
        load_embeddings(tmp_path / "nowhere.npz", WORDS[:2])
    path = tmp_path / "bad.npz"
    for arrays, message in (
        ({"words": np.array(["film"])}, "has no array vectors, it has words"),
        ({"words": np.array(["film"]), "vectors": np.zeros((2, 3))}, r"not \(1,\) and \(2, 3\)"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            load_embeddings(path, WORDS)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read as vectors"):
        load_embeddings(path, WORDS)


def test_embeddings_are_where_the_model_starts():
    matrix = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    model = text_cnn((8,), 3, tokens=20, dimensions=4, embeddings=matrix)
    np.testing.assert_array_equal(model.get_layer("embedding").get_weights()[0], matrix)
    assert model.output_shape == (None, 3)
    assert text_cnn((8,), 3, tokens=20, kernels=(1,)).get_layer("dropout").input.shape == (None, 64)
