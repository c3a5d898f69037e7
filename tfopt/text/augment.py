"""Augmentations of sequences of tokens: pure functions of the sequence and its seed; padding, 0, stays."""

import dataclasses

import tensorflow as tf

from tfopt.augment import Augmentation
from tfopt.augment.base import TOKENS
from tfopt.augment.seeds import integers, uniform
from tfopt.config import require, require_fraction


@dataclasses.dataclass(frozen=True, repr=False)
class TokenDropout(Augmentation):
    """Puts another number in place of tokens at random.

    Args:
      fraction: probability of each token, in [0, 1].
      replace_by: what stands in its place: 1 is the unknown word, 0 is as padding.

    Source: Iyyer et al., Deep Unordered Composition Rivals Syntactic Methods for Text Classification, 2015,
    doi:10.3115/v1/P15-1162, section 3.1.

    >>> TokenDropout(1.0)([5, 6, 0, 0], seeds=7).numpy()
    array([1, 1, 0, 0], dtype=int32)
    """

    kind = TOKENS

    fraction: float = 0.1
    replace_by: int = 1

    def __post_init__(self) -> None:
        require_fraction("fraction", self.fraction, one=True)
        require(self.replace_by >= 0, f"replace_by must be a token's number, 0 or more, received {self.replace_by}")

    def apply(self, tokens: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch, shape (n, t)."""
        drawn = uniform(seeds, 0, shape=(_length(tokens),))
        is_dropped = (drawn < self.fraction) & (tokens != 0)
        return tf.where(is_dropped, tf.cast(self.replace_by, tokens.dtype), tokens)


@dataclasses.dataclass(frozen=True, repr=False)
class TokenSwap(Augmentation):
    """Swaps neighbouring tokens at random.

    Each token has one partner, the one before or behind it; the seed says which. Padding is no partner.

    Args:
      fraction: probability of each pair, in [0, 1].

    Source: Wei and Zou, EDA: Easy Data Augmentation Techniques, 2019, arXiv:1901.11196; here neighbours alone.

    >>> TokenSwap(1.0)([5, 6, 7, 8, 0], seeds=8).numpy()
    array([6, 5, 8, 7, 0], dtype=int32)
    """

    kind = TOKENS

    fraction: float = 0.1

    def __post_init__(self) -> None:
        require_fraction("fraction", self.fraction, one=True)

    def apply(self, tokens: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Changes a batch, shape (n, t)."""
        length = _length(tokens)
        places = tf.range(length)[None]
        is_first = (places + integers(seeds, 0, 2)[:, None]) % 2 == 0
        partners = tf.clip_by_value(tf.where(is_first, places + 1, places - 1), 0, length - 1)
        drawn = tf.gather(uniform(seeds, 1, shape=(length,)), tf.minimum(places, partners), batch_dims=1)
        has_both = (tokens != 0) & (tf.gather(tokens, partners, batch_dims=1) != 0)
        return tf.gather(tokens, tf.where(has_both & (drawn < self.fraction), partners, places), batch_dims=1)


def _length(tokens: tf.Tensor) -> int | tf.Tensor:
    return tokens.shape[1] if tokens.shape[1] is not None else tf.shape(tokens)[1]
