"""The stage `PruneBlocks`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import keras

from tfopt.blocks.find import find_blocks
from tfopt.blocks.prune import named_blocks, prune_blocks
from tfopt.config import require
from tfopt.distill.accuracy import teacher_notes
from tfopt.graph import flatten
from tfopt.order import require_order
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train_in
from tfopt.train.rates import Cosine
from tfopt.train.stage import validate_training
from tfopt.train.task import task_of


@dataclasses.dataclass(frozen=True, repr=False)
class PruneBlocks(Stage):
    """Takes whole residual blocks out of the model and trains what remains.

    Args:
      blocks: the names of their sums, see `find_blocks`; or how many go, at least 1: those that alone cost least.
      epochs: passes over the training split, at least 1.
      fit: how to train.

    Raises:
      ValueError: for values out of range; before training, for blocks that the model does not have.

    Source: Veit et al., 2016, arXiv:1605.06431; Chen and Zhao, 2019, IEEE TPAMI 41 (12).

    >>> PruneBlocks(["add_1"], epochs=3)
    PruneBlocks(blocks=['add_1'], epochs=3)
    """

    blocks: Sequence[str] | int = 1
    epochs: int = 2
    fit: Fit = Fit(Cosine(1e-3))
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.blocks, int):
            require(
                self.blocks >= 1 and not isinstance(self.blocks, bool),
                f"blocks must be names or a number from 1, received {self.blocks!r}",
            )
        else:
            require(bool(self.blocks), "blocks is empty: name one, or say how many go")

    def validate(self, work: Work) -> Work:
        """Checks that the model has such blocks, and that no promise is about what goes."""
        validate_training(work, self.epochs, self.fit)
        # Of a quantization-aware model, before it is said to have no blocks.
        require_order(work, "blocks")
        model = work.need_model()
        known = [each.name for each in find_blocks(model)]
        if isinstance(self.blocks, int):
            require(
                len(known) >= self.blocks,
                f"{self.blocks} residual blocks cannot be taken out of {model.name!r}, it has {len(known)} that can"
                + (f": {', '.join(known)}" if known else ": prune channels instead"),
            )
            goes, expected = known, known[: self.blocks]
        else:
            goes = expected = list(named_blocks(model, self.blocks))
        least = prune_blocks(model, goes)
        left = {variable.path for variable in least.variables}
        require_order(work, "blocks", [each.path for each in model.variables if each.path not in left])
        return work.replace(model=least if expected == goes else prune_blocks(model, expected), trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Takes them out and trains."""
        # It takes blocks out itself, and is imported first.
        from tfopt.analyze.sensitivity import sensitivity

        model, data = work.need_model(), work.need_data()
        notes = []
        if isinstance(self.blocks, int):
            found = sensitivity(model, data, "blocks")
            order = sorted(found.values, key=lambda name: found.drop(name, 1.0))
            names = order[: self.blocks]
            notes.append(f"{found.metric} without {', '.join(names)}, each alone and before training: ")
            notes[-1] += ", ".join(f"{found.values[name][1.0]:.4f}" for name in names)
        else:
            names = list(self.blocks)
        before = model.count_params()
        smaller = prune_blocks(model, names)
        left = {node.name for node in flatten(smaller).nodes}
        gone = [node.name for node in flatten(model).nodes if node.name not in left]
        task_of(model, data).compile(smaller, jit_compile=False)
        trained, history = train_in(self, work, self.epochs, self.fit, model=smaller)
        notes.insert(0, f"without {', '.join(names)}: {before:,} parameters became {trained.count_params():,}")
        notes += teacher_notes(work, self.fit, trained)
        skipped = _skipped(model, names)
        return Outcome(
            work.replace(model=trained, trained=True), changed=gone, skipped=skipped, history=history, notes=notes
        )


def _skipped(model: keras.Model, names: Sequence[str]) -> list[dict[str, str]]:
    """The blocks that stay."""
    return [
        {"layer": each.name, "reason": "the block was not chosen"}
        for each in find_blocks(model)
        if each.name not in names
    ]
