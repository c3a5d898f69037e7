"""`PruningCallback`: magnitude pruning inside anyone's `model.fit`.

Masks are applied and renewed by constraints on the variables, inside the compiled step: they hold at every step,
and fall due at the same steps whatever `steps_per_execution`, XLA, precision policy or strategy.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfopt.invariants import Constraints, Sparsity, replica_variable
from tfopt.prune.magnitude import magnitude_mask, measure_sparsity
from tfopt.prune.targets import prunable_variables
from tfopt.schedules import check_plan, due_and_sparsity, last_update
from tfopt.variables import LayerSelection


class PruningCallback(keras.callbacks.Callback):
    """Sets the smallest weights to zero while a model trains, more and more of them as a schedule says.

    Step 0 of the schedule is where the optimizer stands when the callback is first used; the schedule goes on
    in later `fit` calls with the same callback, and after `keras.callbacks.BackupAndRestore`. The masks stay in
    force in this model after training. `.sparsity` then tells what was reached, `.invariant` the promise.

    Args:
      schedule: `PolynomialDecay`, `ConstantSparsity`, or any TFMOT PruningSchedule.
      layers: names of layers, or a predicate over layers; None: every prunable layer.

    Raises:
      TypeError: the schedule is no schedule.
      ValueError: before the first step, where nothing can be pruned or the planned steps end before the schedule.
      RuntimeError: after training, where it was stopped before the schedule's end.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")], name="net")
    >>> model.compile("sgd", "mse")
    >>> from tfopt.schedules import ConstantSparsity
    >>> callback = PruningCallback(ConstantSparsity(0.75, begin_step=0))
    >>> _ = model.fit(np.ones((8, 8)), np.ones((8, 4)), verbose=0, callbacks=[callback])
    >>> callback.sparsity
    {'net/head/kernel': 0.75}
    """

    def __init__(self, schedule: Any, layers: LayerSelection = None) -> None:
        super().__init__()
        if not callable(schedule):
            raise TypeError(
                f"schedule must be a PolynomialDecay, a ConstantSparsity or a TFMOT PruningSchedule, "
                f"received {schedule!r}"
            )
        self.schedule = schedule
        self.layers = layers
        self.skipped: list[dict[str, str]] = []
        self._masks: list[ScheduledMask] = []
        self._pruned_model: keras.Model | None = None
        self._restored: Mapping[str, np.ndarray] | None = None
        self._started = False

    @property
    def sparsity(self) -> dict[str, float]:
        """The fraction of zeros that each pruned variable has now, by its path."""
        return {mask.variable.path: measure_sparsity(mask.variable) for mask in self._masks}

    @property
    def invariant(self) -> Sparsity:
        """The promise that the zeros of the pruned variables stay."""
        return Sparsity(self.sparsity)

    def set_model(self, model: keras.Model) -> None:
        """Attaches a constraint to each variable to prune."""
        super().set_model(model)
        self._started = False
        if model is self._pruned_model:
            return
        variables, self.skipped = prunable_variables(model, self.layers)
        # A checkpoint may have been restored already, with the optimizer's count of steps.
        origin = int(self._restored["origin"]) if self._restored else _iterations(model)
        self._masks = [ScheduledMask(variable, self.schedule, model, origin) for variable in variables]
        for mask in self._masks:
            own = mask.variable.constraint
            mask.variable.constraint = mask if own is None else Constraints([own, mask])
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
        saved = self._restored or {}
        for index, mask in enumerate(self._masks):
            mask.start(self._step(), saved.get(str(index)))
        self._restored = None

    def on_train_end(self, logs: Any = None) -> None:
        """Checks that the schedule reached its end and that every mask holds."""
        end, step = last_update(self.schedule), self._step()
        for mask in self._masks:
            # An averaging optimizer overwrites the weights when training ends.
            mask.apply()
        if end is None or step >= end:
            return
        if isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer) and not self.model.stop_training:
            logging.warning(
                "%d of the planned steps were skipped by loss scaling; the last pruning update is made now",
                end - step,
            )
            for mask in self._masks:
                mask.renew(float(self.schedule(end)[1]))
            return
        raise RuntimeError(
            f"training ended after {step} steps, the pruning schedule only at step {end}: the sparsity is "
            f"{min(self.sparsity.values()):.3f} and not the {float(self.schedule(end)[1]):.3f} asked for. "
            "Train longer, lower end_step, or do not stop early"
        )

    def state(self) -> dict[str, np.ndarray]:
        """The masks and the first step, for a checkpoint."""
        masks = {str(index): mask.mask.numpy() for index, mask in enumerate(self._masks)}
        return {"origin": np.array(self._masks[0].origin), **masks}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave when training starts."""
        self._restored = state

    def _step(self) -> int:
        return _iterations(self.model) - self._masks[0].origin


class ScheduledMask:
    """A constraint that multiplies a variable by a mask and renews the mask when the schedule says so."""

    def __init__(self, variable: keras.Variable, schedule: Any, model: keras.Model, origin: int) -> None:
        self.variable, self.schedule, self.origin = variable, schedule, origin
        self.iterations = _step_counter(model)
        self.mask = replica_variable(np.ones(variable.shape), variable)

    def __call__(self, value: Any) -> tf.Tensor:
        """The masked value; called by the optimizer at the end of each step."""
        value = tf.convert_to_tensor(value)
        # Constraints run before the optimizer counts the step they belong to.
        step = tf.cast(self.iterations, tf.int64) + 1 - self.origin
        due, sparsity = due_and_sparsity(self.schedule, step)

        def renew() -> tf.Tensor:
            mask = magnitude_mask(value, sparsity, tf.convert_to_tensor(self.mask))
            self.mask.assign(mask)
            return mask

        mask = tf.cond(due, renew, lambda: tf.convert_to_tensor(self.mask))
        return value * tf.cast(mask, value.dtype)

    def start(self, step: int, saved: np.ndarray | None) -> None:
        """Finds the mask in force after `step` steps, and applies it to the variable."""
        weights = keras.ops.convert_to_numpy(self.variable)
        if saved is not None:
            self.mask.assign(saved)
        elif step > getattr(self.schedule, "begin_step", 0):
            # Weights restored in the middle of a schedule carry their mask as zeros.
            self.mask.assign((weights != 0).astype("float32"))
        due, sparsity = due_and_sparsity(self.schedule, tf.constant(step, tf.int64))
        if bool(due):
            self.renew(float(sparsity))
        else:
            self.apply()

    def renew(self, sparsity: float) -> None:
        """Brings the variable to a sparsity now, outside of a training step."""
        self.mask.assign(magnitude_mask(self.variable, sparsity, self.mask.numpy()))
        self.apply()

    def apply(self) -> None:
        """Sets the masked weights to zero now, outside of a training step."""
        self.variable.assign(keras.ops.convert_to_numpy(self.variable) * self.mask.numpy())


def _step_counter(model: keras.Model) -> keras.Variable:
    """The optimizer's own count of training steps."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    # The public `iterations` counts updates: with gradient accumulation it is a new tensor each time, and smaller
    # than the steps that fit plans.
    return optimizer._iterations


def _iterations(model: keras.Model) -> int:
    return int(_step_counter(model).numpy())
