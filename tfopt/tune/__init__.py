"""Search: recipes tried with many settings, or a chain found for a target; compared, and the best of them told."""

from tfopt.tune.auto import reach
from tfopt.tune.candidate import Candidate
from tfopt.tune.goal import Goal
from tfopt.tune.pareto import pareto_front
from tfopt.tune.reached import Reached
from tfopt.tune.result import Search, Trial
from tfopt.tune.search import search
from tfopt.tune.spaces import Choice, Range

__all__ = ["Candidate", "Choice", "Goal", "Range", "Reached", "Search", "Trial", "pareto_front", "reach", "search"]
