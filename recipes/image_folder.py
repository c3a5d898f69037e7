"""Transfer learning from a folder of images to a verified int8 file.

3,000 pictures of Fashion-MNIST as a folder of PNG files (32 x 32, 2,400 to train on), from MLPerf Tiny's ResNet-8,
which knows CIFAR-10: 83.0 % on 300 test images in float, 83.3 % as an int8 file of 94,664 bytes. From the same network
with new weights, as many epochs: 73.0 %. One run of each, the second command:

python -m recipes.image_folder --path=flowers --base=MobileNetV2 --image_size=96
python -m recipes.image_folder --path=clothes --base=mlperf_resnet8_cifar10.keras --value_high=255 --image_size=32
"""

from collections.abc import Sequence

import tfopt

# What pixel values 0 and 255 become in the networks of keras.applications.
_VALUES = {
    "MobileNet": (-1.0, 1.0),
    "MobileNetV2": (-1.0, 1.0),
    "MobileNetV3Small": (0.0, 255.0),
    "MobileNetV3Large": (0.0, 255.0),
    "EfficientNetB0": (0.0, 255.0),
    "EfficientNetV2B0": (0.0, 255.0),
    "NASNetMobile": (-1.0, 1.0),
    "InceptionV3": (-1.0, 1.0),
    "Xception": (-1.0, 1.0),
}


def stages(
    path: str = "images",
    base: str = "MobileNetV2",
    weights: str | None = "imagenet",
    image_size: int = 96,
    value_low: float = 0.0,
    value_high: float = 1.0,
    skip_bad: bool = True,
    head_epochs: int = 5,
    epochs: int = 10,
    qat_epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    qat_learning_rate: float = 1e-4,
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      path: a folder with a folder of images for each class, or a ZIP archive of one.
      base: a network of keras.applications by name, or the path of a trained classifier.
      weights: of a network by name: imagenet (downloaded by Keras at its first use) or the path of a weights file;
        empty: new ones.
      image_size: height and width of what the network sees, pixels.
      value_low: what pixel value 0 becomes, where the base is a file; networks by name have their own.
      value_high: the same of 255.
      skip_bad: leave damaged files out and list them in the report; else the first is an error.
      head_epochs: of the training of the new head alone.
      epochs: of the training of all layers.
      qat_epochs: of the quantization-aware training.
      batch_size: images a training step.
      learning_rate: highest of the head's training, a third of it for all layers; both fall along a cosine.
      qat_learning_rate: the same, of the quantization-aware training.
    """
    values = _VALUES.get(base, (value_low, value_high))
    return [
        tfopt.LoadFolder(
            path,
            (image_size, image_size),
            on_bad="skip" if skip_bad else "raise",
            batch_size=batch_size,
            value_range=values,
        ),
        tfopt.Augment((tfopt.augment.Flip(), tfopt.augment.PadCrop(image_size // 8, "reflect"))),
        tfopt.Build(tfopt.models.transfer, {"base": base, "weights": weights or None}),
        tfopt.Train(head_epochs, tfopt.Fit(tfopt.Cosine(learning_rate)), layers=["probabilities"]),
        tfopt.Train(epochs, tfopt.Fit(tfopt.Cosine(learning_rate / 3, warmup=0.1))),
        tfopt.QuantizeAware(qat_epochs, fit=tfopt.Fit(tfopt.Cosine(qat_learning_rate))),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
