"""`MaskGroup`: the masks of the pruned variables, applied and renewed by constraints inside the compiled step."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.invariants import replica_variable
from tfopt.patterns import Pattern, pattern_masks
from tfopt.prune.magnitude import lamp_scores
from tfopt.schedules import due_and_sparsity

CRITERIA = ("magnitude", "global_magnitude", "lamp", "movement", "taylor", "random")
# The criteria that rank all layers together.
GLOBAL = ("global_magnitude", "lamp")
# The criteria that need to have seen some steps.
WATCHING = ("movement", "taylor")


class MaskGroup:
    """The masks of some variables, which fall due together.

    Args:
      variables: to prune.
      schedule: (due, sparsity) by step.
      iterations: the optimizer's own count of steps.
      origin: what that count was at step 0 of the schedule.
      pattern: how zeros lie.
      criterion: what is removed first.
      together: whether the variables are ranked as one.
      shares: for each variable, by which factor its sparsity differs from the schedule's.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        schedule: Any,
        iterations: keras.Variable,
        origin: int,
        pattern: Pattern,
        criterion: str,
        together: bool,
        shares: Sequence[float],
    ) -> None:
        self.variables, self.schedule, self.iterations, self.origin = list(variables), schedule, iterations, origin
        self.pattern, self.criterion, self.shares = pattern, criterion, list(shares)
        self.sets = [list(range(len(variables)))] if together else [[index] for index in range(len(variables))]
        self.masks = [replica_variable(np.ones(each.shape), each) for each in variables]
        watches = criterion in WATCHING
        self.scores = [replica_variable(np.zeros(each.shape), each) for each in variables] if watches else []
        self.seen = [replica_variable(keras.ops.convert_to_numpy(each), each) for each in variables] if watches else []

    def step(self, index: int, value: Any) -> tf.Tensor:
        """The masked value of a variable; called by the optimizer at the end of each step, as its constraint."""
        value = tf.convert_to_tensor(value)
        if self.scores:
            # A step moves a weight against its gradient: w * g is -w * dw, but for the learning rate.
            product = tf.cast(self.seen[index], tf.float32) * (tf.cast(value, tf.float32) - self.seen[index])
            self.scores[index].assign_add(product if self.criterion == "movement" else tf.abs(product))
        # Constraints run before the optimizer counts the step they belong to.
        due, sparsity = due_and_sparsity(self.schedule, tf.cast(self.iterations, tf.int64) + 1 - self.origin)
        members = next(each for each in self.sets if index in each)
        if index == members[0]:
            # All variables have made their step when the first constraint runs.
            others = {each: tf.convert_to_tensor(self.variables[each]) for each in members[1:]}

            def renew() -> tf.Tensor:
                return self._renew(members, {index: value, **others}, sparsity)[0]

            mask = tf.cond(due, renew, lambda: tf.convert_to_tensor(self.masks[index]))
        else:
            mask = tf.convert_to_tensor(self.masks[index])
        masked = value * tf.cast(mask, value.dtype)
        if self.seen:
            self.seen[index].assign(tf.cast(masked, tf.float32))
        return masked

    def start(self, step: int, saved: Mapping[str, np.ndarray]) -> None:
        """Finds the masks in force after `step` steps, and applies them."""
        for index, variable in enumerate(self.variables):
            if str(index) in saved:
                self.masks[index].assign(saved[str(index)])
            elif step > getattr(self.schedule, "begin_step", 0):
                # Weights restored in the middle of a schedule carry their mask as zeros.
                self.masks[index].assign((keras.ops.convert_to_numpy(variable) != 0).astype("float32"))
            if f"score_{index}" in saved:
                self.scores[index].assign(saved[f"score_{index}"])
        due, sparsity = due_and_sparsity(self.schedule, tf.constant(step, tf.int64))
        if bool(due):
            self.renew(float(sparsity))
        else:
            self.apply()

    def renew(self, sparsity: float) -> None:
        """Brings the variables to a sparsity now, outside of a training step."""
        values = {index: tf.convert_to_tensor(each) for index, each in enumerate(self.variables)}
        for members in self.sets:
            self._renew(members, values, sparsity)
        self.apply()

    def apply(self) -> None:
        """Sets the masked weights to zero now, outside of a training step."""
        for index, (variable, mask) in enumerate(zip(self.variables, self.masks, strict=True)):
            variable.assign(keras.ops.convert_to_numpy(variable) * mask.numpy())
            if self.seen:
                self.seen[index].assign(keras.ops.convert_to_numpy(variable))

    def state(self) -> dict[str, np.ndarray]:
        """The masks, the scores and the first step, for a checkpoint."""
        masks = {str(index): mask.numpy() for index, mask in enumerate(self.masks)}
        scores = {f"score_{index}": score.numpy() for index, score in enumerate(self.scores)}
        return {"origin": np.array(self.origin), **masks, **scores}

    def _renew(self, members: Sequence[int], values: Mapping[int, tf.Tensor], sparsity: Any) -> list[tf.Tensor]:
        scores = [self._score(index, values[index]) for index in members]
        before = [tf.convert_to_tensor(self.masks[index]) for index in members]
        share = self.shares[members[0]]
        masks = pattern_masks(scores, sparsity if share == 1.0 else share * sparsity, self.pattern, before)
        for index, mask in zip(members, masks, strict=True):
            self.masks[index].assign(mask)
        return masks

    def _score(self, index: int, value: tf.Tensor) -> tf.Tensor:
        if self.criterion in ("magnitude", "global_magnitude"):
            return tf.abs(tf.cast(value, tf.float32))
        if self.criterion == "lamp":
            return lamp_scores(value)
        if self.criterion == "random":
            # Always the same numbers for a variable, so that what was removed stays removed.
            digest = hashlib.sha256(self.variables[index].path.encode()).digest()
            return tf.random.stateless_uniform(value.shape, np.frombuffer(digest[:8], np.int32))
        return tf.convert_to_tensor(self.scores[index])
