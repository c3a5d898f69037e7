"""Spoken words to a verified int8 file: mel spectrograms, a DS-CNN, zeros, integers.

python -m recipes.keyword --path=fsdd_8k.npz

The Free Spoken Digit Dataset at 8 kHz: 3,000 recordings of 6 speakers, 300 of them, of the same speakers, for testing.
99.67 % in float, 98.00 % with half of the weights zero, 98.00 % as an int8 file of 44,032 bytes; one run.
`--groups=speaker --test=` tests on speakers who were not trained on.
"""

from collections.abc import Sequence

import tfopt
from tfopt import signals


def stages(
    path: str = "fsdd_8k.npz",
    audio: str = "audio",
    label: str = "digit",
    offsets: str = "offsets",
    test: str | None = "is_test",
    groups: str | None = None,
    names: str = "zero,one,two,three,four,five,six,seven,eight,nine",
    rate: int = 8000,
    bins: int = 40,
    augment: bool = True,
    epochs: int = 20,
    prune_epochs: int = 10,
    qat_epochs: int = 3,
    sparsity: float = 0.5,
    filters: int = 64,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
) -> Sequence[tfopt.Stage]:
    """The chain.

    Args:
      path: a `.npz` file with one recording after the other.
      audio: name of the samples in it, int16, or floats in [-1, 1].
      label: name of the word of each recording, as a number.
      offsets: name of where each recording begins among the samples; a second of it is used.
      test: name of the booleans that say what to test on; empty: a fifth is drawn.
      groups: name of who speaks each recording: speakers are then all in one split.
      names: of the words, in the order of their numbers, with commas.
      rate: samples a second.
      bins: bands of pitch.
      augment: an earlier or later beginning, and another loudness, in training.
      epochs: of the float training.
      prune_epochs: of the training that prunes; 0: no pruning.
      qat_epochs: of the quantization-aware training.
      sparsity: fraction of each kernel to set to zero, in [0, 1).
      filters: of every convolution of the DS-CNN.
      batch_size: recordings a training step.
      learning_rate: highest learning rate of the float training, half of it for the one that prunes, a quarter in the
        quantization-aware one; all fall along a cosine.
    """
    # Frames of 32 ms, a new one every 16 ms. Noise would not do as an augmentation: short recordings are filled with
    # zeros, and a network that has only seen noise there is lost in the silence of a test.
    mel = signals.MelSpectrogram(rate, frame=rate * 32 // 1000, hop=rate * 16 // 1000, bins=bins, floor=1e-3)
    options = {
        "path": path,
        "x": audio,
        "y": label,
        "offsets": offsets,
        "length": rate,
        "test": test or None,
        "groups": groups or None,
        "class_names": tuple(names.split(",")),
        "test_fraction": 0.2,
        "batch_size": batch_size,
        # After the augmentation, which changes the waveform.
        "transform": mel,
    }
    changes = (signals.TimeShift(rate // 10), signals.Scaling(0.3))
    sparser = tfopt.Fit(tfopt.Cosine(learning_rate / 2))
    fine = tfopt.Fit(tfopt.Cosine(learning_rate / 4))
    return [
        tfopt.LoadData(tfopt.from_npz, options),
        tfopt.Prepare((signals.Waveform(),)),
        *([tfopt.Augment(changes)] if augment else []),
        tfopt.Build(tfopt.models.ds_cnn, {"filters": filters}),
        tfopt.Train(epochs, fit=tfopt.Fit(tfopt.Cosine(learning_rate))),
        *([tfopt.Prune(sparsity, prune_epochs, fit=sparser)] if prune_epochs else []),
        tfopt.QuantizeAware(qat_epochs, fit=fine),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
