"""Residual blocks: which a model could do without, and the model without them."""

from tfopt.blocks.find import Block, find_blocks
from tfopt.blocks.prune import prune_blocks
from tfopt.blocks.stage import PruneBlocks

__all__ = ["Block", "PruneBlocks", "find_blocks", "prune_blocks"]
