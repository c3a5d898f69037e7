"""The stage `AnalyzeSensitivity`."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from tfopt.analyze.result import LEVELS, Kind
from tfopt.analyze.sensitivity import sensitivity
from tfopt.blocks.prune import named_blocks
from tfopt.config import require
from tfopt.files import write_text
from tfopt.stage import Outcome, Stage, Work
from tfopt.variables import LayerSelection, select_layers


@dataclasses.dataclass(frozen=True, repr=False)
class AnalyzeSensitivity(Stage):
    """Measures what each layer alone costs when it is pruned, narrowed or rounded; the report plots it.

    The model stays as it is. The figures are written to `sensitivity.json` in the stage's folder.

    Args:
      kind: "sparsity", "ratio", "bits" or "blocks"; see `sensitivity`.
      levels: what is tried on each layer; None: the usual ones.
      layers: names of layers, or a predicate over layers; None: all that can be changed.
      examples: of the validation split, how many at most.

    Raises:
      ValueError: for values out of range.

    >>> AnalyzeSensitivity("bits", levels=(8, 4, 3))
    AnalyzeSensitivity(kind='bits', levels=(8, 4, 3))
    """

    kind: Kind = "sparsity"
    levels: Sequence[float] | None = None
    layers: LayerSelection = None
    examples: int = 1000

    def __post_init__(self) -> None:
        require(self.kind in LEVELS, f"kind must be one of {', '.join(LEVELS)}; received {self.kind!r}")
        require(self.examples >= 1, f"examples must be at least 1, received {self.examples!r}")

    def validate(self, work: Work) -> Work:
        """Checks that there are data, and layers to change."""
        work.need_data()
        if self.kind == "blocks":
            named_blocks(work.need_model(), [] if self.layers is None else self.layers)
        else:
            select_layers(work.need_model(), self.layers)
        return work

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Measures."""
        found = sensitivity(work.need_model(), work.need_data(), self.kind, self.levels, self.layers, self.examples)
        write_text(folder / "sensitivity.json", json.dumps(found.to_dict(), indent=2) + "\n")
        weakest = sorted(found.values, key=lambda layer: max(found.drop(layer, each) for each in found.values[layer]))
        note = (
            f"{found.metric} of the whole model {found.baseline:.4f}; least sensitive {weakest[0]}, most {weakest[-1]}"
        )
        values = {name: {str(level): metric for level, metric in row.items()} for name, row in found.values.items()}
        return Outcome(work, notes=[note], sensitivity={**found.to_dict(), "values": values})
