"""`load_embeddings`: vectors of words from a file, for the words of a vocabulary."""

import contextlib
import dataclasses
import gzip
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np

from tfopt.config import require

# Of words without a vector, as in keras.layers.Embedding.
_RANDOM = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors for a vocabulary.

    Args:
      matrix: float32, shape (words, dimensions), for `keras.layers.Embedding(..., weights=[matrix])`.
      coverage: share of the words that the file has, padding and the unknown word aside, in (0, 1].
      missing: the words that it does not have.
    """

    matrix: np.ndarray
    coverage: float
    missing: tuple[str, ...]


def load_embeddings(
    path: str | os.PathLike[str], vocabulary: Sequence[str], size: int | None = None, seed: int = 0
) -> Embeddings:
    """Reads the vectors of the words of a vocabulary; those of other words are passed over.

    Words are compared as they are written: prepare text as that was which the vectors come from. The row of padding is
    zero; words without a vector get small random values.

    Args:
      path: a text file of GloVe, word2vec or fastText (a word and its values in each line, with or without a first line
        of two numbers), also as .gz; or a .npz file with the arrays `words`, strings, and `vectors`, shape
        (words, dimensions).
      vocabulary: of a `Tokenizer`: padding, the unknown word, words.
      size: dimensions that the vectors must have; None: any.
      seed: of the random values.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that cannot be read, another size, or none of the words is in the file.

    Source: Pennington et al., GloVe, 2014, doi:10.3115/v1/D14-1162.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "vectors.txt"
    >>> _ = path.write_text("good 1 2\\nbad -1 -2\\n")
    >>> found = load_embeddings(path, ("", "[UNK]", "good", "film"))
    >>> found.matrix[[0, 2]], found.coverage, found.missing
    (array([[0., 0.],
           [1., 2.]], dtype=float32), 0.5, ('film',))
    """
    rows = {word: row for row, word in enumerate(vocabulary) if row >= 2}
    require(bool(rows), "the vocabulary has no words beside padding and the unknown word")
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    vectors: dict[str, np.ndarray] = {}
    read = _from_npz(path) if pathlib.Path(path).suffix == ".npz" else _from_text(path, rows, size)
    for word, vector in read:
        require(size in (None, len(vector)), _wrong_size(path, len(vector), size))
        size = len(vector)
        # Some files have a word twice: the first is the more frequent one.
        if word in rows and word not in vectors:
            require(bool(np.isfinite(vector).all()), f"the vector of {word!r} in {path} holds NaN or infinity")
            vectors[word] = vector
    require(
        bool(vectors),
        f"{path} has none of the {len(rows):,} words, such as {', '.join(list(rows)[:5])}: are the casing and the "
        "language the same?",
    )
    assert size is not None
    matrix = np.random.default_rng(seed).uniform(-_RANDOM, _RANDOM, (len(vocabulary), size)).astype("float32")
    matrix[0] = 0
    for word, vector in vectors.items():
        matrix[rows[word]] = vector
    missing = tuple(word for word in rows if word not in vectors)
    return Embeddings(matrix, len(vectors) / len(rows), missing)


def _from_npz(path: str | os.PathLike[str]) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"words", "vectors"} - set(file.files)
            require(not missing, f"has no array {' and '.join(sorted(missing))}, it has {', '.join(file.files)}")
            words, vectors = file["words"], file["vectors"]
        require(
            vectors.ndim == 2 and words.shape == vectors.shape[:1],
            f"must hold words of shape (n,) and vectors of (n, dimensions), not {words.shape} and {vectors.shape}",
        )
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as vectors of words: {error}") from error
    yield from zip(words.tolist(), vectors.astype("float32"), strict=True)


def _from_text(
    path: str | os.PathLike[str], wanted: dict[str, int], size: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The words that are wanted, and their vectors; of other lines the numbers are not read."""
    opened = gzip.open if pathlib.Path(path).suffix == ".gz" else open
    # Files of the web have stray line ends inside words: "\n" alone ends a line.
    with contextlib.closing(opened(path, "rt", encoding="utf-8", newline="\n")) as file:
        found = None
        for number, line in enumerate(file, 1):
            # The space alone parts: some words have other white space in them.
            parts = line.rstrip("\n\r ").split(" ")
            if number == 1 and len(parts) == 2:
                continue
            if found is None:
                found = len(parts) - 1
                require(size in (None, found), _wrong_size(path, found, size))
            require(
                len(parts) > found >= 1,
                f"{path}, line {number}: {len(parts) - 1} values behind the word, {found} in the lines before it",
            )
            word = " ".join(parts[:-found])
            if word not in wanted:
                continue
            try:
                yield word, np.array(parts[-found:], dtype="float32")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error} in the vector of {word!r}") from error


def _wrong_size(path: str | os.PathLike[str], found: int, size: int | None) -> str:
    return f"the vectors in {path} have {found} dimensions, expected size={size}"
