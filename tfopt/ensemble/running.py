"""`RunningMean`: a constraint that changes nothing, and keeps the mean of what passes through it."""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfopt.invariants import add_constraints, replica_variable


class RunningMean:
    """Keeps the mean of a variable's values after training steps.

    The n-th value that counts moves the mean by the share 1/n of the way to it, at least by 1 - decay: the mean of all,
    and from 1 / (1 - decay) values on an exponential one. So it never holds on to a value from before the first.

    Args:
      variable: whose mean it is.
      decay: in (0, 1); None: always the mean of all.
      begin: steps from now before the first that counts.
      frequency: steps from one that counts to the next.
      iterations: the optimizer's own count of steps.
    """

    def __init__(
        self, variable: keras.Variable, decay: float | None, begin: int, frequency: int, iterations: keras.Variable
    ) -> None:
        self.variable, self.begin, self.frequency, self.iterations = variable, begin, frequency, iterations
        self.least = 0.0 if decay is None else 1.0 - decay
        self.mean = replica_variable(np.zeros(variable.shape), variable)
        self.count = replica_variable(np.zeros(()), variable)
        self.first = int(iterations.numpy())
        self._own = variable.constraint

    def __call__(self, value: tf.Tensor) -> tf.Tensor:
        """The value as it is; called by the optimizer."""
        value = tf.convert_to_tensor(value)
        # Constraints run before the optimizer counts the step they belong to.
        passed = tf.cast(self.iterations, tf.int64) + 1 - self.first - self.begin
        counts = tf.cast((passed > 0) & (passed % self.frequency == 0), tf.float32)
        number = tf.convert_to_tensor(self.count) + counts
        share = counts * tf.maximum(1.0 / tf.maximum(number, 1.0), self.least)
        self.mean.assign_add(share * (tf.cast(value, tf.float32) - tf.convert_to_tensor(self.mean)))
        self.count.assign(number)
        return value

    def attach(self) -> None:
        """Begins: it becomes the last constraint of the variable."""
        add_constraints(self.variable, [self])

    def detach(self) -> None:
        """Ends: the variable has the constraints that it had before."""
        self.variable.constraint = self._own

    def finish(self) -> None:
        """Gives the variable the mean, and zeros where it has them now: what was pruned on the way stays pruned."""
        now = keras.ops.convert_to_numpy(self.variable)
        self.variable.assign(np.where(now == 0, 0.0, self.mean.numpy()).astype(now.dtype))

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs."""
        return {"mean": self.mean.numpy(), "count": self.count.numpy(), "first": np.array(self.first)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up what `state` gave."""
        self.mean.assign(state["mean"])
        self.count.assign(state["count"])
        self.first = int(state["first"])
