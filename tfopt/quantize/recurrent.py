"""LSTM and GRU with integers, unrolled."""

from tfopt.quantize.rewrite import Rule

RULES: list[tuple[tuple[type | str, ...], Rule]] = []
