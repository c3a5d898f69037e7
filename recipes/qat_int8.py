"""Quantization-aware training to a verified int8 file: train or load, train on as integers, export, measure.

python -m recipes.qat_int8 --dataset=fashion_mnist --data_dir=~/tensorflow_datasets
python -m recipes.qat_int8 --dataset=cifar10 --model=mlperf_resnet8_cifar10.keras --value_high=255
"""

from collections.abc import Sequence

import tfopt
from recipes._start import float_model


def stages(
    dataset: str = "digits",
    data_dir: str | None = None,
    model: str | None = None,
    value_high: float = 1.0,
    epochs: int = 10,
    qat_epochs: int = 3,
    filters: int = 64,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    qat_learning_rate: float = 5e-4,
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      dataset: any TFDS image classification set; "digits" ships with the dependencies.
      data_dir: folder of the prepared TFDS sets.
      model: a trained model to start from, in place of training one.
      value_high: what pixel value 255 becomes in the model's input; pixel value 0 becomes 0.
      epochs: of the float training of a DS-CNN, where no model is given.
      qat_epochs: of the quantization-aware training.
      filters: of every convolution of the DS-CNN.
      batch_size: examples a training step.
      learning_rate: highest learning rate of the float training; it falls along a cosine.
      qat_learning_rate: the same, of the quantization-aware training.
    """
    return [
        tfopt.LoadTFDS(dataset, data_dir, batch_size=batch_size, value_range=(0.0, value_high)),
        *float_model(model, filters, epochs, learning_rate),
        tfopt.QuantizeAware(qat_epochs, fit=tfopt.Fit(tfopt.Cosine(qat_learning_rate))),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
