"""The stage `Prune`."""

import dataclasses
import pathlib
from typing import Any

from tfopt.config import require, require_fraction
from tfopt.invariants import Sparsity
from tfopt.prune.callback import PruningCallback
from tfopt.prune.targets import prunable_variables
from tfopt.schedules import PolynomialDecay, check_plan, last_update
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train
from tfopt.train.stage import validate_training
from tfopt.variables import LayerSelection


@dataclasses.dataclass(frozen=True, repr=False)
class Prune(Stage):
    """Trains on while it sets the smallest weights to zero, and promises that they stay zero.

    Args:
      final_sparsity: fraction of zeros in each pruned kernel, in [0, 1).
      epochs: passes over the training split, at least 1.
      schedule: how the sparsity rises, in steps of this stage; None: a `PolynomialDecay` from 0 over the first
        half of the steps, so that the second half can recover.
      layers: names of layers, or a predicate over layers; None: every prunable layer.
      fit: how to train.

    Raises:
      ValueError: for values out of range, and for early stopping, which could end before the schedule does.

    >>> Prune(final_sparsity=0.9, epochs=2)
    Prune(final_sparsity=0.9, epochs=2)
    """

    final_sparsity: float = 0.8
    epochs: int = 5
    schedule: Any = None
    layers: LayerSelection = None
    fit: Fit = Fit()

    def __post_init__(self) -> None:
        require_fraction("final_sparsity", self.final_sparsity)
        require(
            self.schedule is None or callable(self.schedule),
            f"schedule must be None or a pruning schedule, received {self.schedule!r}",
        )
        require(
            self.fit.early_stopping is None,
            "early stopping could end the training before the pruning schedule does: leave it out of Prune's fit",
        )

    def validate(self, work: Work) -> Work:
        """Checks that there is something to prune and that the schedule ends within the planned steps."""
        validate_training(work, self.epochs, self.fit)
        steps = self.epochs * work.need_data().steps_per_epoch
        schedule = self.schedule_over(steps)
        check_plan(schedule, steps)
        end = last_update(schedule)
        if end is not None:
            reached = float(schedule(end)[1])
            require(
                abs(reached - self.final_sparsity) < 1e-6,
                f"final_sparsity is {self.final_sparsity}, but the schedule ends at {reached}: make them equal",
            )
        variables, _ = prunable_variables(work.need_model(), self.layers)
        promise = Sparsity({variable.path: self.final_sparsity for variable in variables})
        return work.replace(invariants=(*work.invariants, promise), trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Prunes."""
        data = work.need_data()
        callback = PruningCallback(self.schedule_over(self.epochs * data.steps_per_epoch), self.layers)
        model, history = train(
            work.need_model(),
            data,
            self.epochs,
            self.fit,
            folder=self.partial_folder(work),
            label=self.name,
            keep=work.invariants,
            callbacks=[callback],
        )
        variables, skipped = prunable_variables(model, self.layers)
        paths = [variable.path for variable in variables]
        promise = Sparsity({path: self.final_sparsity for path in paths})
        after = work.replace(model=model, invariants=(*work.invariants, promise), trained=True)
        return Outcome(after, changed=paths, skipped=skipped, history=history)

    def schedule_over(self, steps: int) -> Any:
        """The schedule for a training of so many steps."""
        if self.schedule is not None:
            return self.schedule
        end = max(1, steps // 2)
        # Fifty updates make the rise smooth; TFMOT's 100 steps are the most, for its users' sake.
        frequency = min(100, max(1, end // 50))
        return PolynomialDecay(0.0, self.final_sparsity, begin_step=0, end_step=end, frequency=frequency)
