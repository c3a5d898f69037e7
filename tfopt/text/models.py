"""Small classifiers of sequences of tokens."""

from typing import Any

import keras
from keras import layers

from tfopt.config import require


def text_cnn(
    input_shape: tuple[int, ...],
    classes: int,
    tokens: int = 8000,
    dimensions: int = 64,
    filters: int = 64,
    kernels: tuple[int, ...] = (3, 4, 5),
    dropout: float = 0.5,
    embeddings: Any = None,
) -> keras.Model:
    """Convolutions of several widths over the words, and the largest value of each filter.

    Args:
      input_shape: (length,), of int32 rows of tokens.
      classes: outputs, with softmax.
      tokens: size of the vocabulary.
      dimensions: of the embedding.
      filters: of each convolution.
      kernels: widths of the convolutions, in tokens.
      dropout: fraction of the embedding and of the features dropped in training, in [0, 1).
      embeddings: values for the embedding to start from, shape (tokens, dimensions), as from `load_embeddings`; None:
        random ones.

    Raises:
      ValueError: inputs that are no rows, or embeddings of another shape.

    Source: Kim, Convolutional Neural Networks for Sentence Classification, 2014, arXiv:1408.5882.

    >>> text_cnn((64,), 2, tokens=1000).count_params()
    113730
    """
    inputs, x = _embedded("text_cnn", input_shape, tokens, dimensions, dropout, embeddings)
    features = []
    for kernel in kernels:
        y = layers.Conv1D(filters, kernel, padding="same", activation="relu", name=f"conv{kernel}")(x)
        features.append(layers.GlobalMaxPooling1D(name=f"largest{kernel}")(y))
    x = layers.Concatenate(name="features")(features) if len(features) > 1 else features[0]
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name="text_cnn")


def text_gru(
    input_shape: tuple[int, ...],
    classes: int,
    tokens: int = 8000,
    dimensions: int = 64,
    units: int = 64,
    dropout: float = 0.5,
    embeddings: Any = None,
) -> keras.Model:
    """A recurrent layer over the words, the largest value of each unit, and a hidden layer.

    The largest value, not the last one: so a row may end with padding. Rows of up to 64 tokens become integers wholly;
    for longer ones `quantize_aware` needs `on_unsupported="float"`, and the GRU, a loop there, is the island.
    `prune_channels` leaves the GRU as it is.

    Args:
      input_shape: (length,), of int32 rows of tokens.
      classes: outputs, with softmax.
      tokens: size of the vocabulary.
      dimensions: of the embedding.
      units: of the GRU and the hidden layer.
      dropout: fraction of the embedding and of the features dropped in training, in [0, 1).
      embeddings: values for the embedding to start from, shape (tokens, dimensions), as from `load_embeddings`; None:
        random ones.

    Raises:
      ValueError: inputs that are no rows, or embeddings of another shape.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014, arXiv:1406.1078.

    >>> text_gru((64,), 2, tokens=1000).count_params()
    93250
    """
    inputs, x = _embedded("text_gru", input_shape, tokens, dimensions, dropout, embeddings)
    x = layers.GRU(units, return_sequences=True, name="gru")(x)
    x = layers.GlobalMaxPooling1D(name="largest")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(units, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="probabilities")(x), name="text_gru")


def _embedded(
    name: str, input_shape: tuple[int, ...], tokens: int, dimensions: int, dropout: float, embeddings: Any
) -> tuple[Any, Any]:
    """The input, and its embedding."""
    require(
        len(input_shape) == 1,
        f"{name} takes rows of tokens, input_shape=(length,), received {input_shape}: put tfopt.text.Vectorize "
        "before it",
    )
    table = layers.Embedding(tokens, dimensions, name="embedding")
    if embeddings is not None:
        require(
            tuple(embeddings.shape) == (tokens, dimensions),
            f"embeddings must have shape (tokens, dimensions), here {(tokens, dimensions)}, not {embeddings.shape}",
        )
        table = layers.Embedding(tokens, dimensions, weights=[embeddings], name="embedding")
    inputs = keras.Input(input_shape, dtype="int32", name="tokens")
    return inputs, layers.SpatialDropout1D(dropout, name="embedding_dropout")(table(inputs))
