"""`UpdatePruningStep`, without which pruned layers do not train, and `PruningSummaries`."""

from typing import Any

import keras
import numpy as np
from absl import logging

from tfopt.compat.prune import PruneLowMagnitude
from tfopt.compat.rebuild import layers_of
from tfopt.compat.summaries import Summaries
from tfopt.config import require
from tfopt.prune.magnitude import measure_sparsity
from tfopt.schedules import final_sparsity, last_update
from tfopt.variables import step_counter


class UpdatePruningStep(keras.callbacks.Callback):
    """Renews the masks of pruned layers as training goes on; every training of such a model needs it.

    In a training loop of your own: `set_model(model)`, where `model.optimizer` is your optimizer, `on_train_begin()`
    before the loop, `on_train_batch_begin(batch)` before each step and `on_epoch_end(batch)` at the end of each epoch.

    Raises:
      ValueError: before the first step, where the model has no pruned layers, or the schedule would set no weight to
        zero within the planned steps.
      RuntimeError: after training, where all of the weights are what they were.

    >>> from tfopt.compat.prune import prune_low_magnitude, strip_pruning
    >>> model = prune_low_magnitude(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]))
    >>> model.compile("sgd", "mse")
    >>> _ = model.fit(np.ones((8, 8)), np.ones((8, 4)), verbose=0, callbacks=[UpdatePruningStep()])
    >>> measure_sparsity(strip_pruning(model).layers[0].kernel)
    0.5
    """

    def __init__(self) -> None:
        super().__init__()
        self.prunable_layers: list[PruneLowMagnitude] = []
        self._started = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Attaches the masks."""
        wrapped = layers_of(self.model, PruneLowMagnitude)
        unbuilt = [layer.name for layer in wrapped if not layer.built]
        require(
            not unbuilt,
            f"{', '.join(unbuilt)} of the model {self.model.name!r} have no weights yet that could be pruned: begin "
            "the model with keras.Input(shape), or call it on a batch, or model.build(input_shape), before training",
        )
        found = [layer for layer in wrapped if layer.prunable_variables()]
        require(
            bool(found),
            f"the model {self.model.name!r} has nothing to prune: wrap it, or layers of it that have trainable "
            "kernels, in prune_low_magnitude",
        )
        require(
            self.model.optimizer is not None,
            f"the model {self.model.name!r} has no optimizer, whose steps the schedule counts: compile it, or set "
            "model.optimizer in a training loop of your own",
        )
        self.prunable_layers, self._started = found, False
        for layer in found:
            layer.begin(step_counter(self.model))
        if self.model.compiled:
            # A step traced by an earlier fit knows nothing of these masks.
            self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before the first step, checks the plan and applies the masks due by then."""
        # Not in on_train_begin: callbacks that restore weights do it there, perhaps after this one.
        if self._started:
            return
        steps = self.params.get("steps") if self.params else None
        if steps is not None:
            for layer in self.prunable_layers:
                _require_zeros(layer, self._step() + (self.params["epochs"] - epoch) * steps)
        self._start()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Before the first step of a loop without on_epoch_begin, applies the masks due by then."""
        if not self._started:
            self._start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes how far the schedule is, for checkpoints within an epoch; one layer's note will do."""
        self._note(self.prunable_layers[:1])

    def on_epoch_end(self, batch: int, logs: Any = None) -> None:
        """Notes how far the schedule is, for checkpoints."""
        self._note(self.prunable_layers)

    def on_train_end(self, logs: Any = None) -> None:
        """Checks what was reached."""
        for layer in self.prunable_layers:
            assert layer.masks is not None
            # An averaging optimizer overwrites the weights when training ends.
            layer.masks.apply()
        self._note(self.prunable_layers)
        try:
            for layer in self.prunable_layers:
                _tell_unreached(layer)
        finally:
            for layer in self.prunable_layers:
                layer.end()
            # A later training without this callback must not run the step traced with it.
            self.model.train_function = None

    def _start(self) -> None:
        self._started, step = True, self._step()
        for layer in self.prunable_layers:
            layer.pruning_step.assign(step)
            layer.start()

    def _step(self) -> int:
        """The steps that the schedules had made before this training; within an epoch one layer's note is newest."""
        return max(0, *(int(layer.pruning_step.numpy()) for layer in self.prunable_layers))

    def _note(self, layers: list[PruneLowMagnitude]) -> None:
        for layer in layers:
            layer.pruning_step.assign(layer.step())


class PruningSummaries(Summaries):
    """Writes the sparsity of each pruned variable for TensorBoard at each epoch's begin (extra `tensorboard`).

    Args:
      log_dir: folder of the logs.
      update_freq: as for `keras.callbacks.TensorBoard`, as all others.

    Raises:
      ModuleNotFoundError: TensorBoard is not installed.
      ValueError: `log_dir` is empty.
    """

    def __init__(self, log_dir: str, update_freq: Any = "epoch", **kwargs: Any) -> None:
        super().__init__(log_dir, update_freq=update_freq, **kwargs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Writes."""
        super().on_epoch_begin(epoch, logs)
        values: dict[str, float] = {}
        for layer in layers_of(self.model, PruneLowMagnitude):
            for variable in layer.prunable_variables():
                name = f"{layer.name}/{variable.name}"
                magnitudes = np.abs(keras.ops.convert_to_numpy(variable))
                kept = magnitudes[magnitudes > 0]
                values[f"{name}/mask/sparsity"] = measure_sparsity(variable)
                values[f"{name}/threshold/threshold"] = float(kept.min()) if kept.size else 0.0
        self.write_scalars(values, int(step_counter(self.model).numpy()))


def _require_zeros(layer: PruneLowMagnitude, planned: int) -> None:
    """Raises where no update of the schedule within the planned steps sets any weight to zero."""
    schedule = layer.pruning_schedule
    if any(measure_sparsity(variable) > 0 for variable in layer.prunable_variables()) or last_update(schedule) is None:
        return
    if not final_sparsity(schedule):
        return
    begin, frequency = int(schedule.begin_step), int(schedule.frequency)
    end = planned if schedule.end_step == -1 else min(int(schedule.end_step), planned)
    due = {*range(begin, end + 1, frequency), *([end] if end == schedule.end_step else [])}
    zeros = any(round(float(schedule(step)[1]) * _size(layer)) > 0 for step in sorted(due, reverse=True))
    require(
        zeros,
        f"nothing of {layer.name!r} would be pruned: masks are renewed every {frequency} steps from step {begin} on, "
        f"the schedule ends at step {schedule.end_step}, and training ends at step {planned}. Lower frequency or "
        "begin_step, or train longer",
    )


def _tell_unreached(layer: PruneLowMagnitude) -> None:
    """Raises where a schedule with zeros has left none; warns where it is not at its end."""
    schedule, step = layer.pruning_schedule, layer.step()
    end, final = last_update(schedule), final_sparsity(layer.pruning_schedule)
    reached = min(measure_sparsity(variable) for variable in layer.prunable_variables())
    if reached == 0 and final != 0:
        raise RuntimeError(
            f"nothing of {layer.name!r} was pruned in {step} steps: the schedule {schedule!r} renewed no mask. Train "
            "longer, or begin earlier and renew more often"
        )
    if end is not None and step < end:
        logging.warning(
            "%r is at step %d of its pruning schedule, which reaches its final sparsity of %.3f at step %d: %.3f of "
            "its weights are zero by now. Train on, or lower end_step",
            layer.name,
            step,
            final,
            end,
            reached,
        )


def _size(layer: PruneLowMagnitude) -> int:
    return max(int(np.prod(variable.shape)) for variable in layer.prunable_variables())
