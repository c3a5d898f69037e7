"""`Sensitivity`: a metric by layer and level, and what can be chosen from it."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from tfopt.config import require
from tfopt.record import Record

Kind = Literal["sparsity", "ratio", "bits", "blocks"]
# The levels tried where none are given.
LEVELS: Mapping[Kind, tuple[float, ...]] = {
    "sparsity": (0.5, 0.7, 0.8, 0.9),
    "ratio": (0.125, 0.25, 0.5, 0.75),
    "bits": (8, 4),
    "blocks": (1.0,),
}


@dataclasses.dataclass(frozen=True)
class Sensitivity(Record):
    """What the metric of a model becomes when one layer alone is changed, without any training.

    Args:
      kind: "sparsity": the smallest weights of a layer are zero. "ratio": the least channels of a layer, and of those
        tied to it, are gone. "bits": its weights are rounded. "blocks": a residual block is gone, at the level 1, and
        is named by its sum.
      metric: "accuracy", or "loss" where the task has no accuracy.
      baseline: the metric of the whole model.
      values: by layer, the metric at each level.

    >>> found = Sensitivity("sparsity", "accuracy", 0.9, {"a": {0.5: 0.9, 0.8: 0.89}, "b": {0.5: 0.7, 0.8: 0.3}})
    >>> found.targets(max_drop=0.02)
    {'a': 0.8, 'b': 0.0}
    """

    kind: Kind
    metric: str
    baseline: float
    values: Mapping[str, Mapping[float, float]]

    def drop(self, layer: str, level: float) -> float:
        """How much worse the metric is at a level, below 0 where it is better."""
        change = self.baseline - self.values[layer][level]
        return change if self.metric == "accuracy" else -change

    def targets(self, max_drop: float) -> dict[str, float]:
        """The strongest level for each layer that alone costs no more than `max_drop`, nor does any weaker one.

        Where even the weakest costs more: 0, or 8 bits. What comes out is what `PruningCallback`, `Prune`,
        `prune_channels` and `quantize_aware` take as `layers`.

        Args:
          max_drop: in the metric's own unit: 0.01 is a point of accuracy.

        Raises:
          ValueError: `max_drop` is below 0.
        """
        require(max_drop >= 0, f"max_drop must be at least 0, received {max_drop!r}")
        chosen = {}
        for layer, metrics in self.values.items():
            chosen[layer] = 8.0 if self.kind == "bits" else 0.0
            for level in sorted(metrics, reverse=self.kind == "bits"):
                if self.drop(layer, level) > max_drop:
                    break
                chosen[layer] = level
        if self.kind == "bits":
            return {layer: int(level) for layer, level in chosen.items()}
        return chosen
