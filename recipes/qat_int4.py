"""Weights in 4 bits: quantization-aware training of a DS-CNN to a file of half the size.

python -m recipes.qat_int4 --dataset=fashion_mnist --data_dir=~/tensorflow_datasets
"""

from collections.abc import Sequence

import tfopt


def stages(
    dataset: str = "digits",
    data_dir: str | None = None,
    epochs: int = 10,
    qat_epochs: int = 5,
    filters: int = 64,
    int8_layers: Sequence[str] = (),
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    qat_learning_rate: float = 1e-3,
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      dataset: any TFDS image classification set; "digits" ships with the dependencies.
      data_dir: folder of the prepared TFDS sets.
      epochs: of the float training.
      qat_epochs: of the quantization-aware training; 4 bits need more of it than 8.
      filters: of every convolution.
      int8_layers: layers whose weights keep 8 bits, such as stem_conv.
      batch_size: examples a training step.
      learning_rate: highest learning rate of the float training; it falls along a cosine.
      qat_learning_rate: the same, of the quantization-aware training.
    """
    return [
        tfopt.LoadTFDS(dataset, data_dir, batch_size=batch_size),
        tfopt.Build(tfopt.models.ds_cnn, {"filters": filters}),
        tfopt.Train(epochs, fit=tfopt.Fit(tfopt.Cosine(learning_rate))),
        tfopt.QuantizeAware(
            qat_epochs,
            weight_bits=4,
            layers={name: 8 for name in int8_layers} or None,
            fit=tfopt.Fit(tfopt.Cosine(qat_learning_rate)),
        ),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
