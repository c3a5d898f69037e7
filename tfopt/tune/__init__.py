"""Search: recipes tried with many settings, compared, pruned early, and the best of them told."""

from tfopt.tune.pareto import pareto_front
from tfopt.tune.result import Search, Trial
from tfopt.tune.search import search
from tfopt.tune.spaces import Choice, Range

__all__ = ["Choice", "Range", "Search", "Trial", "pareto_front", "search"]
