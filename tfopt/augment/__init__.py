"""Augmentation of images: pure functions of (images, seeds) as frozen dataclasses."""

from tfopt.augment.base import Augmentation, chain
from tfopt.augment.colour import Brightness, Contrast, Hue, Normalize, Saturation
from tfopt.augment.layer import AugmentationLayer
from tfopt.augment.mix import CutMix, MixUp
from tfopt.augment.policies import AugMix, RandAugment, Ranges, TrivialAugment
from tfopt.augment.seeds import fold
from tfopt.augment.shape import Affine, Crop, Erase, Flip, PadCrop, Resize

__all__ = [
    "Affine",
    "AugMix",
    "Augmentation",
    "AugmentationLayer",
    "Brightness",
    "Contrast",
    "Crop",
    "CutMix",
    "Erase",
    "Flip",
    "Hue",
    "MixUp",
    "Normalize",
    "PadCrop",
    "RandAugment",
    "Ranges",
    "Resize",
    "Saturation",
    "TrivialAugment",
    "chain",
    "fold",
]
