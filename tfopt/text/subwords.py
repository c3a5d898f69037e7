"""`Subwords`: parts of words as numbers, by a vocabulary of the training split."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data import Preparation
from tfopt.text.clean import decoded
from tfopt.text.tokenizer import PADDING, UNKNOWN, Tokenizer, require_rows
from tfopt.text.words import require_sizes


class SubwordTokenizer(Tokenizer):
    """Makes numbers of parts of words, with the library `tokenizers`.

    Args:
      model: the trained tokenizer of that library, as its JSON.
      length: of a row.
    """

    def __init__(self, model: str, length: int) -> None:
        library = _library()
        try:
            self._model = library.Tokenizer.from_str(model)
        except Exception as error:  # the library has no errors of its own
            raise ValueError(f"the library tokenizers cannot read this model: {error}") from error
        # A text that has "[UNK]" in it spells it.
        self._model.encode_special_tokens = True
        by_number = sorted(self._model.get_vocab().items(), key=lambda item: item[1])
        super().__init__((PADDING, *(token for token, _ in by_number[1:])), length)

    def tokenize(self, texts: tf.Tensor) -> tf.Tensor:
        """Numbers of strings of shape (n,), shape (n, length)."""
        return tf.numpy_function(self._tokenize, [texts], tf.int32, stateful=False)

    def _tokenize(self, texts: np.ndarray) -> np.ndarray:
        encoded = self._model.encode_batch([decoded(text) for text in texts])
        rows = np.zeros((len(encoded), self.length), "int32")
        for row, each in zip(rows, encoded, strict=True):
            ids = each.ids[: self.length]
            row[: len(ids)] = ids
        return rows

    def to_dict(self) -> dict[str, Any]:
        """For saving."""
        return {"length": self.length, "model": json.loads(self._model.to_str())}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """From what `to_dict` gave."""
        return cls(json.dumps(content["model"]), content["length"])


@dataclasses.dataclass(frozen=True, repr=False)
class Subwords(Preparation):
    """Makes rows of numbers of texts, a number for each part of a word; parts are merged by byte-pair encoding.

    Frequent words stay whole, rare ones are spelt in parts: few words are unknown to a small vocabulary. Its learned
    function is a `SubwordTokenizer`: int32 of shape (length,), 0 behind the end, 1 for unknown characters. A part that
    begins a word has "▁" before it. Needs `pip install 'tfopt[text]'`.

    Args:
      tokens: the largest size of the vocabulary, with padding and the unknown, at least 3.
      length: of a row, at least 1; longer texts lose their end.

    Raises:
      ImportError: the library `tokenizers` is not there.
      ValueError: sizes too small, inputs that are no strings, or training texts without a character.

    Source: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016, arXiv:1508.07909.

    >>> texts = tf.data.Dataset.from_tensor_slices(["low lower lowest", "low slow"]).batch(2)
    >>> learned = Subwords(tokens=14, length=4).adapt(texts)
    >>> [learned.vocabulary[each] for each in learned(["lows!"]).numpy()[0]]
    ['▁low', 's', '[UNK]', '']
    """

    tokens: int = 4000
    length: int = 64

    def __post_init__(self) -> None:
        require_sizes(self.tokens, self.length)

    def adapt(self, inputs: tf.data.Dataset) -> SubwordTokenizer:
        """Counts and merges."""
        require_rows("Subwords", inputs.element_spec)
        library = _library()
        padding = "[PAD]"
        # Of what the library has, byte-pair encoding without prefixes alone gives the same vocabulary in every process.
        model = library.Tokenizer(library.models.BPE(unk_token=UNKNOWN, fuse_unk=True))
        model.pre_tokenizer = library.pre_tokenizers.Metaspace()
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.tokens,
            # The library takes all characters whatever the size, unless it is told.
            limit_alphabet=self.tokens - 2,
            special_tokens=[padding, UNKNOWN],
            show_progress=False,
        )
        model.train_from_iterator(_texts(inputs), trainer)
        require(model.get_vocab_size() > 2, "the training texts have no characters, so there is no vocabulary to learn")
        return SubwordTokenizer(model.to_str(), self.length)


def _texts(inputs: tf.data.Dataset) -> Iterator[str]:
    for batch in inputs.as_numpy_iterator():
        for text in np.ravel(batch):
            yield decoded(text)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "subwords need the library tokenizers, which is not installed: pip install 'tfopt[text]'"
        ) from error
    return tokenizers
