"""The stage `Fuse`."""

import dataclasses
import pathlib

from tfopt.fuse.model import compare, rewrite
from tfopt.stage import Outcome, Stage, Work


@dataclasses.dataclass(frozen=True, repr=False)
class Fuse(Stage):
    """Fuses each BatchNormalization and linear pair of the trained model; the outputs stay the same, which is checked.

    Raises:
      ValueError: before training, where nothing can be fused, or a promise would break; see `fuse_layers`.

    >>> Fuse()
    Fuse()
    """

    def validate(self, work: Work) -> Work:
        """Fuses, to see that it can be done."""
        return work.replace(model=rewrite(work.need_model(), work.invariants).model)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Fuses, and compares the outputs on a batch of the validation split."""
        model = work.need_model()
        found = rewrite(model, work.invariants)
        x = None if work.data is None else next(iter(work.data.batches("validation")))[0]
        difference = compare(model, found.model, x)
        note = (
            f"{len(found.fused)} layers went into others; {model.count_params():,} parameters became "
            f"{found.model.count_params():,}; outputs differ by {difference:.2g} of the largest one at most"
        )
        changed = [f"{gone} into {into}" for gone, into in found.fused.items()]
        return Outcome(work.replace(model=found.model), changed=changed, skipped=found.skipped, notes=[note])
