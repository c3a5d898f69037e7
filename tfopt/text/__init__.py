"""Text: cleaning, words or subwords as numbers, augmentation, pretrained embeddings, small models."""

from tfopt.text.augment import TokenDropout, TokenSwap
from tfopt.text.clean import CleanText
from tfopt.text.embeddings import Embeddings, load_embeddings
from tfopt.text.models import text_cnn, text_gru
from tfopt.text.subwords import Subwords, SubwordTokenizer
from tfopt.text.tokenizer import Tokenizer, load_tokenizer
from tfopt.text.words import Vectorize, WordTokenizer

__all__ = [
    "CleanText",
    "Embeddings",
    "SubwordTokenizer",
    "Subwords",
    "TokenDropout",
    "TokenSwap",
    "Tokenizer",
    "Vectorize",
    "WordTokenizer",
    "load_embeddings",
    "load_tokenizer",
    "text_cnn",
    "text_gru",
]
