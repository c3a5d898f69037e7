"""Sound: waveforms as float32, and their mel spectrograms."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfopt.config import require
from tfopt.data.prepare import Preparation


def as_waveform(inputs: Any) -> tf.Tensor:
    """Sound as float32 of shape (n, samples, 1); int16 is brought to [-1, 1), floats stay as they are.

    Raises:
      ValueError: another shape or type.

    >>> as_waveform(tf.constant([[0, -(2**15)]], tf.int16)).numpy().ravel()
    array([ 0., -1.], dtype=float32)
    """
    x = tf.convert_to_tensor(inputs)
    require(
        x.dtype == tf.int16 or x.dtype.is_floating,
        f"waveforms are int16 or floats in [-1, 1], received {x.dtype.name}: cast them",
    )
    require(
        x.shape.rank == 2 or (x.shape.rank == 3 and x.shape[-1] == 1),
        f"waveforms are of shape (n, samples) or (n, samples, 1), received {x.shape}: take one channel, or their mean",
    )
    x = tf.cast(x, tf.float32) * 2.0**-15 if x.dtype == tf.int16 else tf.cast(x, tf.float32)
    return x[..., None] if x.shape.rank == 2 else x


@dataclasses.dataclass(frozen=True, repr=False)
class Waveform(Preparation):
    """Brings sound to what the augmentations of signals take: float32 of shape (samples, 1), int16 to [-1, 1).

    >>> import numpy as np
    >>> Waveform()(np.zeros((4, 8000), "int16")).shape
    TensorShape([4, 8000, 1])
    """

    def adapt(self, inputs: tf.data.Dataset) -> "Waveform":
        """There is nothing to learn."""
        as_waveform(next(iter(inputs)))
        return self

    def __call__(self, inputs: Any) -> tf.Tensor:
        """Changes a batch, shape (n, samples) or (n, samples, 1)."""
        return as_waveform(inputs)


@dataclasses.dataclass(frozen=True, repr=False)
class MelSpectrogram(Preparation):
    """The power of sound in frames of time and bands of pitch.

    In a chain, put it into `Prepare`, which keeps the spectrograms. To change the waveforms first, differently in each
    epoch, give it as `transform` of the data, which comes after the augmentations.

    Args:
      rate: samples a second.
      frame: samples in a frame, weighted by a Hann window.
      hop: samples from one frame to the next.
      bins: bands, of equal width in mel, at least 1.
      low: where the lowest band begins, Hz.
      high: where the highest ends, Hz; None: half of the rate.
      log: the natural logarithm of `power + floor`.
      floor: the power of what counts as silence, above 0. Below the noise of the recordings, silence filled in with
        zeros looks like nothing that was ever recorded.

    Raises:
      ValueError: sizes below 1, frequencies out of order, or a band so narrow that no frequency of a frame lies in it.

    Source: Davis and Mermelstein, 1980, doi:10.1109/TASSP.1980.1163420; mel as in HTK: 1127 ln(1 + f / 700).

    >>> import numpy as np
    >>> MelSpectrogram(rate=8000, frame=256, hop=128, bins=32)(np.zeros((4, 8000), "int16")).shape
    TensorShape([4, 61, 32, 1])
    """

    rate: int = 16_000
    frame: int = 512
    hop: int = 256
    bins: int = 40
    low: float = 20.0
    high: float | None = None
    log: bool = True
    floor: float = 1e-6

    def __post_init__(self) -> None:
        require(
            min(self.rate, self.frame, self.hop, self.bins) >= 1,
            f"rate, frame, hop and bins must be at least 1, received {self}",
        )
        require(self.floor > 0, f"floor must be above 0, received {self.floor}")
        require(
            0 <= self.low < self._high <= self.rate / 2,
            f"frequencies must be 0 <= low < high <= {self.rate / 2:g} Hz, half of the rate; received {self.low:g} and "
            f"{self._high:g}",
        )
        empty = int((self._weights().numpy().sum(axis=0) == 0).sum())
        require(
            not empty,
            f"{empty} of {self.bins} bands are so narrow that no frequency of a frame of {self.frame} samples lies in "
            "them: take fewer bins, or longer frames",
        )

    @property
    def _high(self) -> float:
        return self.rate / 2 if self.high is None else self.high

    def _weights(self) -> tf.Tensor:
        """float32, shape (frequencies, bins)."""
        # A power of 2, which the Fourier transform is fast for.
        frequencies = (1 << (self.frame - 1).bit_length()) // 2 + 1
        return tf.signal.linear_to_mel_weight_matrix(self.bins, frequencies, self.rate, self.low, self._high)

    def adapt(self, inputs: tf.data.Dataset) -> "MelSpectrogram":
        """There is nothing to learn."""
        self(next(iter(inputs)))
        return self

    def __call__(self, inputs: Any, *rest: Any) -> Any:
        """The spectrograms of a batch.

        Args:
          inputs: int16, or floats in [-1, 1], shape (n, samples) or (n, samples, 1).
          *rest: what else there is of the batch, such as labels: passed on.

        Returns:
          float32, shape (n, frames, bins, 1), of `1 + (samples - frame) // hop` frames; and
          `*rest` where there is any.
        """
        waves = as_waveform(inputs)[..., 0]
        samples = waves.shape[1]
        require(
            samples is None or samples >= self.frame,
            f"a frame has {self.frame} samples, the waveforms have {samples}: take shorter frames",
        )
        spectra = tf.signal.stft(waves, self.frame, self.hop)
        power = tf.math.real(spectra * tf.math.conj(spectra))
        found = tf.matmul(power, self._weights())[..., None]
        found = tf.math.log(found + self.floor) if self.log else found
        return (found, *rest) if rest else found
