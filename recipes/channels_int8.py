"""Fewer blocks and channels, then integers: train or load, take them out, train on, quantize, export, measure.

python -m recipes.channels_int8 --dataset=fashion_mnist --data_dir=~/tensorflow_datasets
python -m recipes.channels_int8 --dataset=cifar10 --model=mlperf_resnet8_cifar10.keras --value_high=255
"""

import dataclasses
from collections.abc import Sequence

import tfopt
from recipes._start import augmented, float_model
from tfopt.blocks import PruneBlocks
from tfopt.distill import Teaching


def stages(
    dataset: str = "digits",
    data_dir: str | None = None,
    model: str | None = None,
    value_high: float = 1.0,
    epochs: int = 10,
    more_epochs: int = 0,
    blocks: int = 0,
    macs: float = 0.5,
    sensitivity: bool = False,
    iterations: int = 1,
    channels_epochs: int = 10,
    qat_epochs: int = 3,
    filters: int = 64,
    flip: bool = False,
    shift: int = 0,
    distill: bool = False,
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
      more_epochs: of training a given model on, before anything goes, at `qat_learning_rate`.
      blocks: how many residual blocks go first, those that alone cost least.
      macs: the share of the multiplications that the channels leave, in (0, 1]; 1: all channels stay.
      sensitivity: whether layers give up channels by what each alone costs, instead of all the same share.
      iterations: in how many parts the channels go.
      channels_epochs: of the training after each of them, and after the blocks.
      qat_epochs: of the quantization-aware training.
      filters: of every convolution of the DS-CNN.
      flip: mirror half of the training images.
      shift: move training images by up to so many pixels.
      distill: whether the smaller models learn from the whole one, too.
      batch_size: examples a training step.
      learning_rate: highest learning rate of the float trainings; it falls along a cosine.
      qat_learning_rate: the same, of the quantization-aware training.
    """
    fit = tfopt.Fit(tfopt.Cosine(learning_rate))
    start = float_model(model, filters, epochs, learning_rate, more_epochs, qat_learning_rate)
    # The whole model teaches what is left of it; see `tfopt.tune.candidate` for the figures behind these two.
    teaching = Teaching(stage=start[-1].name, temperature=4.0, alpha=0.7) if distill else None
    narrowing = dataclasses.replace(fit, distill=teaching)
    channels = tfopt.PruneChannels(
        target={"macs": macs},
        epochs=channels_epochs,
        iterations=iterations,
        layers="sensitivity" if sensitivity else None,
        fit=narrowing,
    )
    return [
        tfopt.LoadTFDS(dataset, data_dir, batch_size=batch_size, value_range=(0.0, value_high)),
        *augmented(flip, shift),
        *start,
        *([PruneBlocks(blocks, channels_epochs, narrowing)] if blocks else []),
        *([channels] if macs < 1 else []),
        tfopt.QuantizeAware(qat_epochs, fit=tfopt.Fit(tfopt.Cosine(qat_learning_rate), distill=teaching)),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
