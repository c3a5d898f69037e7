"""Fusing: BatchNormalization into what it follows, linear layers into one."""

from tfopt.fuse.model import Fused, fuse_layers
from tfopt.fuse.stage import Fuse

__all__ = ["Fuse", "Fused", "fuse_layers"]
