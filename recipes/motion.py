"""Exercises from a watch's motion sensors to a verified int8 file; tested on people who were not trained on.

python -m recipes.motion --path=watch_imu_windows.npz

Seven exercises, 4,677 windows of 10 people; the seed chooses one for validation and two or three for testing.
84.82 % in float and 84.67 % as an int8 file of 33 kB with `--seed=0`, 87.35 % and 88.48 % with `--seed=1`: how much
depends on who is tested shows in the distance between the two.
"""

from collections.abc import Sequence

import tfopt
from tfopt import signals, tabular


def stages(
    path: str = "watch_imu_windows.npz",
    x: str = "x",
    y: str = "y",
    groups: str = "subject",
    classes: str = "classes",
    test_fraction: float = 0.2,
    augment: bool = True,
    epochs: int = 30,
    qat_epochs: int = 5,
    filters: int = 32,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    qat_learning_rate: float = 5e-4,
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      path: a `.npz` file with windows of shape (n, time, channels) and their labels.
      x: name of the windows in it.
      y: name of the labels.
      groups: name of who each window is of: windows of one person overlap, and are all in one split.
      classes: name of the names of the classes.
      test_fraction: share of the windows to test on, in whole people, in (0, 1); a tenth of all is for validation.
      augment: noise, strength and speed that vary in training.
      epochs: of the float training.
      qat_epochs: of the quantization-aware training.
      filters: of the first convolution.
      batch_size: windows a training step.
      learning_rate: highest learning rate of the float training; it falls along a cosine.
      qat_learning_rate: the same, of the quantization-aware training.
    """
    options = {"path": path, "x": x, "y": y, "groups": groups, "classes": classes}
    changes = (signals.Jitter(0.05), signals.Scaling(0.1), signals.TimeWarp(0.2))
    return [
        tfopt.LoadData(tfopt.from_npz, {**options, "test_fraction": test_fraction, "batch_size": batch_size}),
        tfopt.Prepare((tabular.Scale(),)),
        *([tfopt.Augment(changes)] if augment else []),
        tfopt.Build(signals.conv1d_net, {"filters": filters}),
        tfopt.Train(epochs, fit=tfopt.Fit(tfopt.Cosine(learning_rate))),
        tfopt.QuantizeAware(qat_epochs, fit=tfopt.Fit(tfopt.Cosine(qat_learning_rate))),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
