"""Real handwritten digits to a sparse int8 file: train, prune, export, measure.

The first recipe to run: scikit-learn's digits need no download, and two minutes on two cores are enough.

    python -m recipes.digits_int8 --sparsity=0.8 --workdir=/tmp/digits
"""

from collections.abc import Sequence

import tfopt
from tfopt import tune

# For `python -m recipes.tune`.
SPACES = {
    "sparsity": tune.Range(0.5, 0.95, step=0.05),
    "learning_rate": tune.Range(1e-3, 1e-2, log=True),
    "filters": tune.Choice(16, 32, 64),
    "Prune.fit.optimizer": tune.Choice("adam", "sgd"),
}


def stages(
    dataset: str = "digits",
    data_dir: str | None = None,
    epochs: int = 15,
    prune_epochs: int = 40,
    sparsity: float = 0.8,
    batch_size: int = 32,
    learning_rate: float = 4e-3,
    filters: int = 64,
    precision: str = "float32",
    quantization: str = "int8",
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      dataset: any TFDS image classification set of small images; "digits" ships with the dependencies.
      data_dir: folder of the prepared TFDS sets.
      epochs: of the dense training.
      prune_epochs: of the training that prunes.
      sparsity: fraction of each kernel to set to zero, in [0, 1).
      batch_size: examples a training step.
      learning_rate: highest learning rate; it falls along a cosine.
      filters: of the first convolution.
      precision: float32, mixed_bfloat16 or mixed_float16.
      quantization: of the file: none, float16, dynamic, int8 or int16x8.
    """
    return [
        tfopt.LoadTFDS(dataset, data_dir, batch_size=batch_size),
        tfopt.Build(tfopt.models.cnn, {"filters": filters, "shift": 0.1}),
        tfopt.Train(epochs, fit=tfopt.Fit(tfopt.Cosine(learning_rate), precision=precision)),
        tfopt.Prune(sparsity, prune_epochs, fit=tfopt.Fit(tfopt.Cosine(learning_rate / 2), precision=precision)),
        tfopt.ExportTFLite(quantization),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
