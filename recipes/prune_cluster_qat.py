"""Zeros, clusters and integers in one file: train or load, prune, cluster, quantize, export, measure.

python -m recipes.prune_cluster_qat --dataset=fashion_mnist --data_dir=~/tensorflow_datasets
python -m recipes.prune_cluster_qat --dataset=cifar10 --model=mlperf_resnet8_cifar10.keras --value_high=255 \\
    --flip --shift=4
"""

from collections.abc import Sequence

import tfopt
from recipes._start import augmented, float_model
from tfopt.distill import Teaching
from tfopt.kernels import has_kernel


def stages(
    dataset: str = "digits",
    data_dir: str | None = None,
    model: str | None = None,
    value_high: float = 1.0,
    epochs: int = 10,
    more_epochs: int = 0,
    sparsity: float = 0.8,
    pattern: str = "unstructured",
    criterion: str = "global_magnitude",
    clusters: int = 16,
    prune_epochs: int = 6,
    cluster_epochs: int = 3,
    qat_epochs: int = 3,
    filters: int = 64,
    flip: bool = False,
    shift: int = 0,
    distill: bool = False,
    depthwise: bool = False,
    refresh: int = 1,
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
      more_epochs: of training a given model on, before anything else, at `qat_learning_rate`.
      sparsity: fraction of the weights to set to zero, in [0, 1).
      pattern: where the zeros may lie: unstructured, N:M such as 2:4 (with its own sparsity), or blocks such as 1x4.
      criterion: which weights go first: magnitude (the smallest of each layer), global_magnitude (of all layers
        together), lamp (the same, but it spares small layers), movement, taylor or random.
      clusters: different values in each kernel, zero included, at least 2.
      prune_epochs: of the training that prunes.
      cluster_epochs: of the training with clusters.
      qat_epochs: of the quantization-aware training.
      filters: of every convolution of the DS-CNN.
      flip: mirror half of the training images.
      shift: move training images by up to so many pixels.
      distill: whether all later trainings learn from the float model, too.
      depthwise: whether depthwise kernels are pruned and clustered, too.
      refresh: steps after which each weight may change its cluster; 0: never.
      batch_size: examples a training step.
      learning_rate: highest learning rate of the float training, half of it for the one that prunes; both fall along a
        cosine.
      qat_learning_rate: the same, of the trainings with clusters and integers.
    """
    start = float_model(model, filters, epochs, learning_rate, more_epochs, qat_learning_rate)
    teaching = Teaching(stage=start[-1].name, temperature=4.0, alpha=0.7) if distill else None
    layers = has_kernel if depthwise else None
    fine = tfopt.Fit(tfopt.Cosine(qat_learning_rate), distill=teaching)
    return [
        tfopt.LoadTFDS(dataset, data_dir, batch_size=batch_size, value_range=(0.0, value_high)),
        *augmented(flip, shift),
        *start,
        tfopt.Prune(
            sparsity,
            prune_epochs,
            layers=layers,
            fit=tfopt.Fit(tfopt.Cosine(learning_rate / 2), distill=teaching),
            pattern=pattern,
            criterion=criterion,
        ),
        tfopt.Cluster(clusters, cluster_epochs, layers=layers, refresh=refresh, fit=fine),
        tfopt.QuantizeAware(qat_epochs, fit=fine),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
