"""CIFAR-10 through the same chain, with MLPerf Tiny's ResNet-8: train or load, prune, export, measure.

python -m recipes.cifar10_resnet8 --dataset=cifar10 --data_dir=~/tensorflow_datasets
python -m recipes.cifar10_resnet8 --model=mlperf_resnet8_cifar10.keras --value_high=255
"""

from collections.abc import Sequence

import tfopt


def stages(
    dataset: str = "cifar10",
    data_dir: str | None = None,
    model: str | None = None,
    value_high: float = 1.0,
    epochs: int = 20,
    prune_epochs: int = 12,
    sparsity: float = 0.5,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    precision: str = "float32",
    quantization: str = "int8",
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      dataset: any TFDS image classification set.
      data_dir: folder of the prepared TFDS sets.
      model: a trained model to start from, in place of training one.
      value_high: what pixel value 255 becomes in the model's input; pixel value 0 becomes 0.
      epochs: of the dense training, where no model is given.
      prune_epochs: of the training that prunes.
      sparsity: fraction of each kernel to set to zero, in [0, 1).
      batch_size: examples a training step.
      learning_rate: highest learning rate of the dense training, a quarter of it for the one that prunes; both fall
        along a cosine.
      precision: float32, mixed_bfloat16 or mixed_float16.
      quantization: of the file: none, float16, dynamic, int8 or int16x8.
    """
    fit = tfopt.Fit(tfopt.Cosine(learning_rate), precision=precision)
    # The weights are good already: smaller steps.
    fine = tfopt.Fit(tfopt.Cosine(learning_rate / 4), precision=precision)
    if model is None:
        start = [tfopt.Build(tfopt.models.resnet8), tfopt.Train(epochs, fit=fit)]
    else:
        start = [tfopt.LoadModel(model)]
    return [
        tfopt.LoadTFDS(dataset, data_dir, batch_size=batch_size, value_range=(0.0, value_high)),
        *start,
        tfopt.Prune(sparsity, prune_epochs, fit=fine),
        tfopt.ExportTFLite(quantization),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
