"""Attention, layer normalization and embeddings with integers."""

from tfopt.quantize.rewrite import Rule

RULES: list[tuple[tuple[type | str, ...], Rule]] = []
