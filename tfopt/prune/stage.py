"""The stage `Prune`."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import keras

from tfopt.config import require, require_fraction
from tfopt.distill.accuracy import teacher_notes
from tfopt.invariants import Sparsity
from tfopt.order import require_order
from tfopt.patterns import Pattern
from tfopt.prune.callback import PruningCallback, check_method
from tfopt.prune.masks import GLOBAL, WATCHING
from tfopt.prune.targets import Targets, find_targets
from tfopt.schedules import PolynomialDecay, check_plan, last_update
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.loop import train_in
from tfopt.train.stage import validate_training

# What TFMOT's users know: little is lost at it, by most networks.
_USUAL = 0.8


@dataclasses.dataclass(frozen=True, repr=False)
class Prune(Stage):
    """Trains on while it sets the least weights to zero, and promises that they stay zero.

    Args:
      final_sparsity: fraction of zeros in each pruned kernel, in [0, 1); None: what the pattern or `layers` say, else
        0.8.
      epochs: passes over the training split, at least 1.
      schedule: how the sparsity rises, in steps of this stage; None: a `PolynomialDecay` from 0 over the first
        half of the steps, so that the second half can recover.
      layers: names of layers, or a predicate over layers, or the final sparsity by the name of a layer; None: every
        prunable layer.
      fit: how to train.
      pattern: where zeros may lie, such as "unstructured", "2:4" or "1x4"; see `PruningCallback`.
      criterion: which weights go first; see `PruningCallback`.

    Raises:
      ValueError: for values out of range, and for early stopping, which could end before the schedule does.

    >>> Prune(final_sparsity=0.9, epochs=2)
    Prune(final_sparsity=0.9, epochs=2)
    """

    final_sparsity: float | None = None
    epochs: int = 5
    schedule: Any = None
    layers: Targets = None
    fit: Fit = Fit()
    pattern: str = "unstructured"
    criterion: str = "magnitude"
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.final_sparsity is not None:
            require_fraction("final_sparsity", self.final_sparsity)
        require(
            self.final_sparsity is None or not isinstance(self.layers, Mapping),
            "layers gives a sparsity by layer: leave final_sparsity out, or give layers as a list of names",
        )
        require(
            self.schedule is None or callable(self.schedule),
            f"schedule must be None or a pruning schedule, received {self.schedule!r}",
        )
        require(
            self.fit.early_stopping is None,
            "early stopping could end the training before the pruning schedule does: leave it out of Prune's fit",
        )
        require(
            self.fit.synchronize_every == 1,
            "replicas that train by themselves would choose zeros of their own: leave synchronize_every out",
        )
        # Of a schedule over as many steps as the criterion needs, whatever the data will be.
        check_method(self.schedule_over(1000), Pattern(self.pattern), self.layers, self.criterion)

    def validate(self, work: Work) -> Work:
        """Checks that there is something to prune and that the schedule ends within the planned steps."""
        validate_training(work, self.epochs, self.fit)
        steps = self.epochs * work.need_data().steps_per_epoch
        schedule = self.schedule_over(steps)
        check_plan(schedule, steps)
        end = last_update(schedule)
        if end is not None and not isinstance(self.layers, Mapping):
            reached = float(schedule(end)[1])
            require(
                abs(reached - self.target) < 1e-6,
                f"final_sparsity is {self.target}, but the schedule ends at {reached}: make them equal",
            )
        promise = self._promise(work.need_model())
        require_order(work, "zeros", promise.targets)
        return work.replace(invariants=(*work.invariants, promise), trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Prunes."""
        data = work.need_data()
        schedule = self.schedule_over(self.epochs * data.steps_per_epoch)
        callback = PruningCallback(schedule, self.pattern, self.layers, self.criterion)
        model, history = train_in(self, work, self.epochs, self.fit, callbacks=[callback])
        # Which layers' zeros add up to a global sparsity shows only now.
        promise = self._promise(model, reached=True)
        after = work.replace(model=model, invariants=(*work.invariants, promise), trained=True)
        skipped = find_targets(model, self.layers, Pattern(self.pattern))[2]
        sizes = {each.path: math.prod(each.shape) for each in model.variables if each.path in promise.targets}
        zeros = sum(share * sizes[path] for path, share in promise.targets.items()) / sum(sizes.values())
        note = (
            f"{zeros:.1%} of the weights of {len(sizes)} kernels are zero: the compressed file shrinks, the file "
            "itself and the latency on a CPU do not"
        )
        notes = [note, *teacher_notes(work, self.fit, model)]
        return Outcome(after, changed=list(promise.targets), skipped=skipped, history=history, notes=notes)

    @property
    def target(self) -> float:
        """The sparsity that the schedule ends at."""
        if self.final_sparsity is not None:
            return self.final_sparsity
        if isinstance(self.layers, Mapping) and self.layers:
            return max(self.layers.values())
        fixed = Pattern(self.pattern).fixed_sparsity
        return _USUAL if fixed is None else fixed

    def _promise(self, model: keras.Model, reached: bool = False) -> Sparsity:
        """What is promised: of a global sparsity, what each variable reached; before training nothing is known."""
        pattern = Pattern(self.pattern)
        variables, finals, _ = find_targets(model, self.layers, pattern)
        targets = {}
        for variable, final in zip(variables, finals, strict=True):
            shape, asked = tuple(variable.shape), self.target if final is None else final
            if self.criterion in GLOBAL:
                zeros = pattern.structured_zeros(keras.ops.convert_to_numpy(variable)) if reached else 0
                targets[variable.path] = zeros / math.prod(shape)
            elif self.pattern == "unstructured":
                targets[variable.path] = asked
            else:
                targets[variable.path] = pattern.zero_count(shape, asked) / math.prod(shape)
        return Sparsity(targets, self.pattern)

    def schedule_over(self, steps: int) -> Any:
        """The schedule for a training of so many steps."""
        if self.schedule is not None:
            return self.schedule
        end = max(1, steps // 2)
        # Fifty updates make the rise smooth; TFMOT's 100 steps are the most, for its users' sake.
        frequency = min(100, max(1, end // 50))
        # A criterion that watches needs something to have seen.
        begin = min(end - 1, max(1, end // 10)) if self.criterion in WATCHING else 0
        return PolynomialDecay(0.0, self.target, begin_step=begin, end_step=end, frequency=frequency)
