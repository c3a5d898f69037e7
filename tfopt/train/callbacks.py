"""Callbacks of tfopt's own training: guard, early stopping, progress, checkpoint."""

import math
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from tfopt.train.checkpoint import read_checkpoint, write_checkpoint
from tfopt.workers.preemption import Preempted, is_asked_to_end


class Resumable(Protocol):
    """A callback whose state goes into the checkpoint."""

    def state(self) -> Mapping[str, np.ndarray]:
        """What it has to remember, as arrays."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The reverse of `state`."""


class NanGuard(keras.callbacks.Callback):
    """Ends training with an error that names the first step whose loss was no finite number."""

    # Lets Keras hand over the logs from a thread, without a halt of the training loop at each step.
    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._first_bad: int | None = None

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Notes the step if the running loss of the epoch is not finite any more."""
        if logs and not math.isfinite(logs["loss"]):
            with self._lock:
                self._first_bad = min(batch, batch if self._first_bad is None else self._first_bad)
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Raises where a step went wrong."""
        steps = self.params["steps"]
        if self._first_bad is not None:
            # Losses are seen after each call of the compiled function.
            first = self._first_bad + 2 - self.model.steps_per_execution
            where = f"at step {first}"
            if self.model.steps_per_execution > 1:
                where = f"within steps {first} to {min(self._first_bad + 1, steps)}"
            where += f" of epoch {epoch + 1} (step {epoch * steps + first} of training)"
        elif not math.isfinite((logs or {}).get("val_loss", 0.0)):
            where = f"on the validation split after epoch {epoch + 1} (step {(epoch + 1) * steps} of training)"
        else:
            return
        raise FloatingPointError(
            f"the loss is not a finite number any more: first {where}. Lower the learning rate, look for extreme "
            "inputs, or clip the gradients; nothing was saved of this epoch"
        )


class StopEarly(keras.callbacks.Callback):
    """Stops when val_loss did not fall for `patience` epochs and takes the best weights back; can resume."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience = patience
        self.best = math.inf
        self.best_epoch = -1
        self.stopped = False
        self._best_weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Keeps the weights of the best epoch; stops when it is too long ago."""
        loss = (logs or {})["val_loss"]
        if loss < self.best:
            self.best, self.best_epoch = loss, epoch
            self._best_weights = self.model.get_weights()
        elif epoch - self.best_epoch >= self.patience:
            self.stopped = self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Takes the best weights back."""
        self.model.set_weights(self._best_weights)

    def state(self) -> dict[str, np.ndarray]:
        """Best loss, its epoch and weights, and whether training is over."""
        weights = {f"weight{index}": value for index, value in enumerate(self._best_weights)}
        return {"summary": np.array([self.best, self.best_epoch, self.stopped], "float64"), **weights}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The reverse of `state`."""
        best, epoch, stopped = state["summary"].tolist()
        self.best, self.best_epoch, self.stopped = best, int(epoch), bool(stopped)
        self._best_weights = [state[f"weight{index}"] for index in range(len(state) - 1)]


class Advance(keras.callbacks.Callback):
    """Moves a progress bar on at each step, and shows the metrics of the last epoch."""

    async_safe = True

    def __init__(self, bar: Any, first_epoch: int, steps: int) -> None:
        super().__init__()
        self._bar, self._steps = bar, steps
        self._epoch = first_epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the bar on."""
        self._bar.update(self._epoch * self._steps + batch + 1)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Shows the metrics."""
        shown = {key: value for key, value in (logs or {}).items() if key in ("loss", "val_accuracy")}
        text = " ".join(f"{key} {value:.3f}" for key, value in shown.items())
        self._bar.update((epoch + 1) * self._steps, text)


class Checkpoint(keras.callbacks.Callback):
    """Writes all that training needs to go on, and takes it up again: after each epoch, and within one now and then.

    Within an epoch it writes every ten minutes, and when the process is asked to end (SIGTERM), which it then does. A
    training that goes on there reads the batches that it has had, and passes them over.

    Args:
      path: the checkpoint's file.
      parts: callbacks with a state of their own.
      writes: False in all of several processes but one; each reads the same file.
      seconds: between two checkpoints within an epoch.
    """

    def __init__(
        self, path: pathlib.Path, parts: Sequence[Resumable] = (), writes: bool = True, seconds: float = 600.0
    ) -> None:
        super().__init__()
        self.path, self.parts, self._writes, self._seconds = path, tuple(parts), writes, seconds
        self.history: dict[str, list[float]] = {}
        self.epochs_done = self.steps_done = 0
        self._metrics: list[np.ndarray] = []
        self._last, self._pause = time.monotonic(), 0

    def resume(self, model: keras.Model) -> None:
        """Restores the model, its optimizer and the parts from the file, where there is one."""
        saved = read_checkpoint(self.path)
        if saved is None:
            return
        arrays, self.history, self.epochs_done = saved
        self.steps_done = int(arrays.pop("steps_done", 0))
        self._metrics = [arrays.pop(name) for name in list(arrays) if name.startswith("metrics/")]
        variables = self._variables(model)
        wanted = {(name, tuple(variable.shape)) for name, variable in variables.items()}
        differing = wanted ^ {(name, each.shape) for name, each in arrays.items() if not name.startswith("part/")}
        if differing:
            names = sorted({name for name, _ in differing})
            raise ValueError(
                f"{self.path} is a checkpoint of another model: {', '.join(names[:3])} differ in shape or are in one "
                "of them only; delete it to start this stage again"
            )
        for name, variable in variables.items():
            variable.assign(arrays[name])
        for index, part in enumerate(self.parts):
            prefix = f"part/{index}/"
            part.restore(
                {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Passes over the steps of this epoch that were done in another process."""
        self._pause = 0
        if self.steps_done == 0:
            return
        # Keras has reset the metrics just now.
        for variable, value in zip(self.model.metrics_variables, self._metrics, strict=True):
            variable.assign(value)
        train, calls, size = self.model.train_function, 0, self.model.steps_per_execution
        passed = -(-self.steps_done // size)
        self._pause = passed

        def pass_over(iterator: Any) -> Any:
            nonlocal calls
            calls += 1
            for _ in range(size):
                next(iterator)
            if calls == passed:
                self.model.train_function = train
                self.model.batches_passed = passed * size
            return self.model.get_metrics_result()

        self.model.train_function = pass_over
        self.steps_done = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Writes the checkpoint within an epoch, where it is time to."""
        is_due = self._writes and time.monotonic() - self._last > self._seconds
        wish = _END if is_asked_to_end() else _SAVE if is_due else 0.0
        agree = getattr(self.model, "agree", None)
        if agree is not None:
            # Every process takes part in what follows, after the same step.
            wish = agree(wish)
        self._pause -= 1
        if wish == 0.0 or self._pause >= 0:
            return
        if batch > 0:
            # Before the first, it is what was written after the last epoch.
            self._write(self.epochs_done, batch)
            # What was wished meanwhile is done.
            self._pause = 3
        if wish >= _END:
            raise Preempted

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Writes the checkpoint."""
        self.epochs_done = epoch + 1
        for key, value in (logs or {}).items():
            self.history.setdefault(key, []).append(float(value))
        self._write(self.epochs_done, 0)

    def _write(self, epochs_done: int, steps_done: int) -> None:
        self._last = time.monotonic()
        # Read by all: metrics of several processes are summed as they are read.
        metrics = [keras.ops.convert_to_numpy(each) for each in self.model.metrics_variables] if steps_done else []
        if not self._writes:
            return
        arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in self._variables(self.model).items()}
        for index, part in enumerate(self.parts):
            arrays.update({f"part/{index}/{key}": value for key, value in part.state().items()})
        if steps_done:
            arrays["steps_done"] = np.array(steps_done)
            arrays.update({f"metrics/{index}": value for index, value in enumerate(metrics)})
        write_checkpoint(self.path, arrays, self.history, epochs_done)

    @staticmethod
    def _variables(model: keras.Model) -> dict[str, Any]:
        # By position, not by path: paths of optimizer variables need not be unique. Seed generators are among
        # the model's variables.
        groups = {"model": model.variables, "optimizer": model.optimizer.variables}
        return {f"{key}/{index}": each for key, group in groups.items() for index, each in enumerate(group)}


# What a process wishes; the wishes of all are added up.
_SAVE, _END = 1.0, 1000.0
