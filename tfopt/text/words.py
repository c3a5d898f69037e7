"""`Vectorize`: words as numbers, by a vocabulary of the training split."""

import dataclasses
from typing import Any, Literal, Self, get_args

import keras
import tensorflow as tf

from tfopt.config import require
from tfopt.data import Preparation
from tfopt.text.tokenizer import PADDING, UNKNOWN, Tokenizer, require_rows

Standardize = Literal["lower_and_strip_punctuation", "lower", "strip_punctuation"]


class WordTokenizer(Tokenizer):
    """Makes numbers of words between white space, with `keras.layers.TextVectorization`.

    Args:
      vocabulary: as for `Tokenizer`.
      length: of a row.
      standardize: as for `Vectorize`.

    >>> WordTokenizer(("", "[UNK]", "good", "film"), length=5)(["Good, bad: a film!"]).numpy()
    array([[2, 1, 1, 3, 0]], dtype=int32)
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        length: int,
        standardize: Standardize | None = "lower_and_strip_punctuation",
    ) -> None:
        super().__init__(vocabulary, length)
        self.standardize = standardize
        self._layer = keras.layers.TextVectorization(
            standardize=standardize, output_sequence_length=length, vocabulary=list(vocabulary[2:])
        )

    def tokenize(self, texts: tf.Tensor) -> tf.Tensor:
        """Numbers of strings of shape (n,), shape (n, length)."""
        return self._layer(texts)

    def to_dict(self) -> dict[str, Any]:
        """For saving."""
        return {"length": self.length, "standardize": self.standardize, "vocabulary": self.vocabulary}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """From what `to_dict` gave."""
        return cls(**{**content, "vocabulary": tuple(content["vocabulary"])})


@dataclasses.dataclass(frozen=True, repr=False)
class Vectorize(Preparation):
    """Makes rows of numbers of texts, a number for each of the most frequent words of the training split.

    Its learned function is a `WordTokenizer`: int32 of shape (length,), 0 behind the end, 1 for other words.

    Args:
      tokens: the largest size of the vocabulary, with padding and the unknown word, at least 3.
      length: of a row, at least 1; longer texts lose their end.
      standardize: what is done to the text before it is split, as in `keras.layers.TextVectorization`; casing of ASCII
        letters alone: `CleanText` knows all. None: nothing.

    Raises:
      ValueError: sizes too small, inputs that are no strings, or training texts without a word.

    >>> texts = tf.data.Dataset.from_tensor_slices(["a film a day", "a day"]).batch(2)
    >>> learned = Vectorize(tokens=4, length=3).adapt(texts)
    >>> learned.vocabulary
    ('', '[UNK]', 'a', 'day')
    >>> learned(["a good day or two"]).numpy()
    array([[2, 1, 3]], dtype=int32)
    """

    tokens: int = 8000
    length: int = 64
    standardize: Standardize | None = "lower_and_strip_punctuation"

    def __post_init__(self) -> None:
        require_sizes(self.tokens, self.length)
        known = get_args(Standardize)
        require(
            self.standardize in (*known, None),
            f"standardize must be one of {', '.join(known)} or None, received {self.standardize!r}",
        )

    def adapt(self, inputs: tf.data.Dataset) -> WordTokenizer:
        """Counts the words."""
        require_rows("Vectorize", inputs.element_spec)
        layer = keras.layers.TextVectorization(max_tokens=self.tokens, standardize=self.standardize)
        layer.adapt(inputs)
        words = tuple(map(str, layer.get_vocabulary(include_special_tokens=False)))
        require(bool(words), "the training texts have no words, so there is no vocabulary to learn from them")
        return WordTokenizer((PADDING, UNKNOWN, *words), self.length, self.standardize)


def require_sizes(tokens: int, length: int) -> None:
    """Raises a ValueError for a vocabulary or rows of no use."""
    require(tokens >= 3, f"tokens must be at least 3, padding, the unknown word and one more, received {tokens}")
    require(length >= 1, f"length must be at least 1, received {length}")
