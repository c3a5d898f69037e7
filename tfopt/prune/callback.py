"""`PruningCallback`: pruning inside anyone's `model.fit`.

Masks are applied and renewed by constraints on the variables, inside the compiled step: they hold at every step,
and fall due at the same steps whatever `steps_per_execution`, XLA, precision policy or strategy.
"""

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from absl import logging

from tfopt.config import require
from tfopt.invariants import Sparsity, add_constraints
from tfopt.patterns import Pattern
from tfopt.prune.magnitude import measure_sparsity
from tfopt.prune.masks import CRITERIA, GLOBAL, WATCHING, MaskGroup
from tfopt.prune.targets import Targets, find_targets
from tfopt.schedules import check_plan, final_sparsity, last_update
from tfopt.variables import step_counter


class PruningCallback(keras.callbacks.Callback):
    """Sets the least weights to zero while a model trains, more and more of them as a schedule says.

    Step 0 of the schedule is where the optimizer stands when the callback is first used; the schedule goes on
    in later `fit` calls with the same callback, and after `keras.callbacks.BackupAndRestore`. The masks stay in
    force in this model after training. `.sparsity` then tells what was reached, `.invariant` the promise.

    Args:
      schedule: `PolynomialDecay`, `ConstantSparsity`, or any TFMOT PruningSchedule. All at once, and once for all:
        `ConstantSparsity(0.8, begin_step=0, end_step=0)`.
      pattern: where zeros may lie: "unstructured"; "2:4" and other N:M, which leave N of M weights of an output; or
        blocks of inputs x outputs such as "1x4". See `tfopt.patterns.Pattern`.
      layers: names of layers, or a predicate over layers, or the final sparsity by the name of a layer; None: every
        prunable layer.
      criterion: which weights go first. "magnitude": the smallest of each layer. "global_magnitude": the smallest of
        all layers together, so that layers end at different sparsities. "lamp": the same, each magnitude counted by its
        share of what its layer has left (`tfopt.prune.magnitude.lamp_scores`): it spares small layers and depthwise
        kernels, which "global_magnitude" does not. "movement": those that moved towards zero since training began.
        "taylor": those whose steps changed the loss least, |w * gradient| as the optimizer's step shows it. "random":
        any, as the control that the others must beat.

    Raises:
      TypeError: the schedule is no schedule.
      ValueError: before the first step, where nothing can be pruned, the pattern does not fit, or the planned steps
        end before the schedule.
      RuntimeError: after training, where it was stopped before the schedule's end.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")], name="net")
    >>> model.compile("sgd", "mse")
    >>> from tfopt.schedules import ConstantSparsity
    >>> callback = PruningCallback(ConstantSparsity(0.75, begin_step=0))
    >>> _ = model.fit(np.ones((8, 8)), np.ones((8, 4)), verbose=0, callbacks=[callback])
    >>> callback.sparsity
    {'net/head/kernel': 0.75}
    """

    def __init__(
        self,
        schedule: Any,
        pattern: str = "unstructured",
        layers: Targets = None,
        criterion: str = "magnitude",
    ) -> None:
        super().__init__()
        if not callable(schedule):
            raise TypeError(
                f"schedule must be a PolynomialDecay, a ConstantSparsity or a TFMOT PruningSchedule, "
                f"received {schedule!r}"
            )
        self.schedule, self.pattern = schedule, Pattern(pattern)
        self.layers, self.criterion = layers, criterion
        check_method(self.schedule, self.pattern, layers, criterion)
        self.skipped: list[dict[str, str]] = []
        self._group: MaskGroup | None = None
        self._pruned_model: keras.Model | None = None
        self._restored: Mapping[str, np.ndarray] | None = None
        self._started = False

    @property
    def sparsity(self) -> dict[str, float]:
        """The fraction of zeros that each pruned variable has now, by its path."""
        return {each.path: measure_sparsity(each) for each in self._variables}

    @property
    def invariant(self) -> Sparsity:
        """The promise that the zeros of the pruned variables stay, in their pattern."""
        kernels = {each.path: keras.ops.convert_to_numpy(each) for each in self._variables}
        shares = {path: self.pattern.structured_zeros(kernel) / kernel.size for path, kernel in kernels.items()}
        return Sparsity(shares, self.pattern.text)

    def set_model(self, model: keras.Model) -> None:
        """Attaches a constraint to each variable to prune."""
        super().set_model(model)
        self._started = False
        if model is self._pruned_model:
            return
        variables, finals, self.skipped = find_targets(model, self.layers, self.pattern)
        whole = final_sparsity(self.schedule)
        shares = [1.0 if final is None else final / float(whole or 1.0) for final in finals]
        # A checkpoint may have been restored already, with the optimizer's count of steps.
        origin = int(self._restored["origin"]) if self._restored else int(step_counter(model).numpy())
        together = self.criterion in GLOBAL
        self._group = MaskGroup(
            variables, self.schedule, step_counter(model), origin, self.pattern, self.criterion, together, shares
        )
        for index, variable in enumerate(variables):
            add_constraints(variable, [functools.partial(self._group.step, index)])
        self._pruned_model = model
        # A training step traced by an earlier fit knows nothing of the constraints.
        model.train_function = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before the first step, checks the plan and applies the masks due by then."""
        # Not in on_train_begin: callbacks that restore weights and iterations do it there, perhaps after this one.
        if self._started:
            return
        self._started = True
        steps = self.params.get("steps")
        if steps is not None:
            check_plan(self.schedule, self._step() + (self.params["epochs"] - epoch) * steps)
        self._masks.start(self._step(), self._restored or {})
        self._restored = None

    def on_train_end(self, logs: Any = None) -> None:
        """Checks that the schedule reached its end and that every mask holds."""
        end, step = last_update(self.schedule), self._step()
        # An averaging optimizer overwrites the weights when training ends.
        self._masks.apply()
        if end is None or step >= end:
            return
        if isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer) and not self.model.stop_training:
            logging.warning(
                "%d of the planned steps were skipped by loss scaling; the last pruning update is made now",
                end - step,
            )
            self._masks.renew(float(self.schedule(end)[1]))
            return
        raise RuntimeError(
            f"training ended after {step} steps, the pruning schedule only at step {end}: the sparsity is "
            f"{min(self.sparsity.values()):.3f} and not the {float(self.schedule(end)[1]):.3f} asked for. "
            "Train longer, lower end_step, or do not stop early"
        )

    def state(self) -> dict[str, np.ndarray]:
        """The masks and the first step, for a checkpoint."""
        return self._masks.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave when training starts."""
        self._restored = state

    @property
    def _masks(self) -> MaskGroup:
        assert self._group is not None
        return self._group

    @property
    def _variables(self) -> list[keras.Variable]:
        return [] if self._group is None else self._group.variables

    def _step(self) -> int:
        return int(step_counter(self.model).numpy()) - self._masks.origin


def check_method(schedule: Any, pattern: Pattern, layers: Targets, criterion: str) -> None:
    """Checks that schedule, pattern, targets and criterion go together.

    Raises:
      ValueError: they do not; says what would.
    """
    require(criterion in CRITERIA, f"criterion must be one of {', '.join(CRITERIA)}; received {criterion!r}")
    final, fixed = final_sparsity(schedule), pattern.fixed_sparsity
    require(
        fixed is None or final is None or abs(final - fixed) < 1e-6,
        f"pattern {pattern.text} ends at a sparsity of {fixed}, the schedule at {final}: make them equal",
    )
    require(
        fixed is None or (criterion not in GLOBAL and not isinstance(layers, Mapping)),
        f"pattern {pattern.text} has a sparsity of {fixed} in every layer: it takes neither a sparsity by layer nor "
        f"{' or '.join(GLOBAL)}",
    )
    if isinstance(layers, Mapping):
        require(
            criterion not in GLOBAL,
            f"{criterion} finds each layer's sparsity itself: give layers as a list of names, or take magnitude",
        )
        require(
            bool(final),
            "a sparsity by layer needs a schedule that tells its final sparsity, above 0 (begin_step and end_step)",
        )
    require(
        criterion not in WATCHING or getattr(schedule, "begin_step", 1) > 0,
        f"{criterion} has seen nothing at step 0: let the schedule begin later, after an epoch for instance",
    )
