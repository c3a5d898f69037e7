"""`Tokenizer`: what makes numbers of text, as learned, and how it is kept in a file."""

import json
import os
import pathlib
from typing import Any, Self

import tensorflow as tf

from tfopt.config import require
from tfopt.files import write_text
from tfopt.text.clean import require_text

PADDING, UNKNOWN = "", "[UNK]"


class Tokenizer:
    """Makes rows of numbers of texts: a number for each token, 0 behind the end, 1 for what is unknown.

    Args:
      vocabulary: the tokens by number; the first two are "" for padding and "[UNK]" for what is unknown.
      length: of a row; longer texts lose their end.
    """

    def __init__(self, vocabulary: tuple[str, ...], length: int) -> None:
        require(
            vocabulary[:2] == (PADDING, UNKNOWN),
            f"a vocabulary begins with {PADDING!r} and {UNKNOWN!r}, received {vocabulary[:2]}",
        )
        self.vocabulary = vocabulary
        self.length = length

    def __call__(self, texts: Any) -> tf.Tensor:
        """Makes numbers of a batch.

        Args:
          texts: strings, shape (n,) or (n, 1).

        Returns:
          int32, shape (n, length).
        """
        texts = tf.convert_to_tensor(texts)
        require_rows(type(self).__name__, texts)
        ids = tf.cast(self.tokenize(tf.reshape(texts, [-1])), tf.int32)
        ids.set_shape([texts.shape[0], self.length])
        return ids

    def tokenize(self, texts: tf.Tensor) -> tf.Tensor:
        """Numbers of strings of shape (n,), shape (n, length); what a subclass writes."""
        raise NotImplementedError(f"{type(self).__name__} must define tokenize(texts)")

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` of the same class needs, as JSON can hold it; what a subclass writes."""
        raise NotImplementedError(f"{type(self).__name__} must define to_dict()")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """From what `to_dict` gave; what a subclass writes."""
        raise NotImplementedError(f"{cls.__name__} must define from_dict(content)")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file that `load_tokenizer` reads."""
        content = {"tokenizer": type(self).__name__, **self.to_dict()}
        write_text(pathlib.Path(path), json.dumps(content, ensure_ascii=False, indent=1))


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file holds no tokenizer.

    >>> import tempfile
    >>> from tfopt.text.words import WordTokenizer
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "words.json"
    >>> WordTokenizer(("", "[UNK]", "good", "film"), length=4).save(path)
    >>> load_tokenizer(path)(["a good film"]).numpy()
    array([[1, 2, 3, 0]], dtype=int32)
    """
    from tfopt.text.subwords import SubwordTokenizer
    from tfopt.text.words import WordTokenizer

    kinds: dict[str, type[Tokenizer]] = {each.__name__: each for each in (WordTokenizer, SubwordTokenizer)}
    text = pathlib.Path(path).read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        return kinds[content.pop("tokenizer")].from_dict(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no tokenizer ({error!r}): write one with its method save") from error


def require_rows(name: str, spec: Any) -> None:
    """Raises a ValueError unless `spec` is of strings, one for each example."""
    require_text(name, spec)
    require(
        spec.shape.rank == 1 or (spec.shape.rank == 2 and spec.shape[1] == 1),
        f"{name} takes one text for each example, shape (n,) or (n, 1), received shape {spec.shape}: choose a column, "
        "or join them before",
    )
