"""The flag that the benchmarks with alternating variants share; absl knows a flag by one definition."""

from absl import flags

ROUNDS = flags.DEFINE_integer("rounds", 9, "How often the variants take turns.", lower_bound=1)
