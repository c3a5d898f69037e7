"""`CleanText`: markup, invisible characters, URLs, casing, Unicode forms and white space."""

import dataclasses
import html
import re
import unicodedata
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from tfopt.config import require
from tfopt.data import Preparation

Form = Literal["NFC", "NFKC"]

# As browsers do, what is not closed ends with the text. So each pattern reads a text once.
_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b[^<>]*>.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
# "a < b" and "<3" are no tags.
_TAG = re.compile(r"</?[a-z!?][^<>]*>", re.IGNORECASE)
# A bracket is part of a URL where it is closed in it; the mark at the end of a sentence is not.
_URL = re.compile(
    r"(?<!\w)(?:https?://|ftp://|www\.)(?:[^\s<>\"()]|\([^\s<>\"()]*\))*(?:\([^\s<>\"()]*\)|[^\s<>\"().,;:!?'\]}])",
    re.IGNORECASE,
)
# Soft hyphen, zero-width space, marks of direction, byte order mark, replacement character. Joiners stay: some
# scripts, and emoji, are spelt with them.
_INVISIBLE = {0x00AD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF, 0xFFFD}


@dataclasses.dataclass(frozen=True, repr=False)
class CleanText(Preparation):
    """Cleans text, in the order of its arguments. There is nothing to learn: it is its own function.

    Args:
      html: drop tags, comments, scripts and styles, and write entities such as `&amp;` as characters.
      control: drop control characters and invisible ones.
      unicode: "NFC" writes equal characters equally; "NFKC" also those that differ in form only, such as wide letters
        and ligatures; None leaves them.
      urls: what stands in place of a URL; "" drops them, None leaves them.
      lower: write in lower case.
      whitespace: make every run of white space one space, and none at the ends.

    Raises:
      ValueError: inputs other than strings, or bytes that are no UTF-8; the latter comes out of a `tf.data.Dataset`
        as `tf.errors.InvalidArgumentError`.

    Source: Unicode Standard Annex #15, Unicode Normalization Forms.

    >>> CleanText().clean("<p>ﬁne &amp;  GOOD:<br>see https://a.org/b?c=1.</p>")
    'fine & good: see url.'
    """

    html: bool = True
    control: bool = True
    unicode: Form | None = "NFKC"
    urls: str | None = "url"
    lower: bool = True
    whitespace: bool = True

    def __post_init__(self) -> None:
        forms = get_args(Form)
        require(
            self.unicode in (*forms, None), f"unicode must be one of {', '.join(forms)} or None, not {self.unicode!r}"
        )

    def adapt(self, inputs: tf.data.Dataset) -> "CleanText":
        """Itself."""
        require_text("CleanText", inputs.element_spec)
        return self

    def __call__(self, texts: Any) -> tf.Tensor:
        """Cleans a batch of strings of any shape."""
        texts = tf.convert_to_tensor(texts)
        require_text("CleanText", texts)
        # TensorFlow has no Unicode normal forms and no entities: Python does it all, so that there is one result.
        cleaned = tf.numpy_function(self._clean_all, [texts], tf.string, stateful=False)
        cleaned.set_shape(texts.shape)
        return cleaned

    def clean(self, text: str) -> str:
        """Cleans one text."""
        text = strip_html(text) if self.html else text
        text = strip_control(text) if self.control else text
        text = self._normal(text)
        text = text if self.urls is None else _URL.sub(lambda _: self.urls or "", text)
        # Wide letters become letters by the normal form, and small letters may need another one.
        text = self._normal(text.lower()) if self.lower else text
        return " ".join(text.split()) if self.whitespace else text

    def _normal(self, text: str) -> str:
        return unicodedata.normalize(self.unicode, text) if self.unicode else text

    def _clean_all(self, texts: Any) -> np.ndarray:
        texts = np.asarray(texts, dtype=object)
        cleaned = np.empty_like(texts)
        for place, text in np.ndenumerate(texts):
            cleaned[place] = self.clean(decoded(text)).encode()
        return cleaned


def strip_html(text: str) -> str:
    """Drops markup; a tag leaves a space, as it often stands between words.

    >>> strip_html("one<br/>two<!-- three --> &lt; 4 < 5 <3")
    'one two  < 4 < 5 <3'
    """
    if "<" in text:
        text = _TAG.sub(" ", _HIDDEN.sub(" ", text))
    return html.unescape(text)


def strip_control(text: str) -> str:
    r"""Drops control characters other than white space, and invisible ones.

    >>> strip_control("so\u00adft\x00\ttab")
    'soft\ttab'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each for each in text if each.isspace() or not _is_control(each))


def require_text(name: str, spec: Any) -> None:
    """Raises a ValueError unless `spec`, of a batch of inputs, is of strings."""
    require(
        getattr(spec, "dtype", None) == tf.string,
        f"{name} takes one input of strings, received {spec}: put it before what makes numbers of text, and choose "
        "the column of the text where there are several",
    )


def decoded(text: bytes) -> str:
    """The string of UTF-8 bytes; raises a ValueError where they are none."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text {text[:60]!r} is no UTF-8 ({error.reason} at byte {error.start}): read its file with the "
            "encoding that it has, such as latin-1, and write UTF-8"
        ) from error


def _is_control(character: str) -> bool:
    return ord(character) in _INVISIBLE or unicodedata.category(character) == "Cc"
