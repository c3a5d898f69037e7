"""Signals: augmentations of (time, channels), mel spectrograms, and a model for them."""

from tfopt.signals.amplitude import Jitter, Scaling
from tfopt.signals.mel import MelSpectrogram, Waveform
from tfopt.signals.models import conv1d_net
from tfopt.signals.time import TimeMask, TimeShift, TimeWarp

__all__ = ["Jitter", "MelSpectrogram", "Scaling", "TimeMask", "TimeShift", "TimeWarp", "Waveform", "conv1d_net"]
