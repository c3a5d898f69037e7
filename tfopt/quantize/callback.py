"""`FreezeRanges`: ends the watching of ranges and statistics, so that the last steps train what will be exported."""

from typing import Any

import keras

from tfopt.config import require
from tfopt.quantize.frozen import is_quantized
from tfopt.quantize.layer import QuantizedLayer
from tfopt.variables import step_counter


class FreezeRanges(keras.callbacks.Callback):
    """From a step of training on, ranges and BatchNormalization statistics stay as they are.

    The weights then settle on the very ranges and statistics that the file will have. The training step is traced
    again once, when it begins.

    Args:
      begin_step: first optimizer step with fixed ranges, at least 0; with `steps_per_execution` above 1, the first
        execution that starts there or later.

    Raises:
      ValueError: the model is not quantization-aware, or training would end before that step.

    Source: Krishnamoorthi, Quantizing deep convolutional networks, 2018, arXiv:1806.08342, section 3.2.3.

    >>> FreezeRanges(900).begin_step
    900
    """

    def __init__(self, begin_step: int) -> None:
        super().__init__()
        require(begin_step >= 0, f"begin_step must be at least 0, received {begin_step!r}")
        self.begin_step = begin_step

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks the plan."""
        require(
            is_quantized(self.model),
            f"{self.model.name!r} is not quantization-aware: call quantize_aware(model) first",
        )
        self._fixed = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Checks that training gets as far as that step."""
        steps = self.params.get("steps")
        planned = None if steps is None else self._step() + (self.params["epochs"] - epoch) * steps
        require(
            planned is None or self.begin_step < planned,
            f"ranges are to stay from step {self.begin_step} on, but training ends after step {planned}: lower "
            "begin_step or train longer",
        )
        # A training that goes on within an epoch may be past it, and passes over steps from here.
        self._fix_when_due()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Fixes the ranges when the step has come."""
        self._fix_when_due()

    def _fix_when_due(self) -> None:
        if not self._fixed and self._step() >= self.begin_step:
            self._set(watches=False)
            self._fixed = True

    def on_train_end(self, logs: Any = None) -> None:
        """A later training watches again."""
        if self._fixed:
            self._set(watches=True)

    def state(self) -> dict[str, Any]:
        """Nothing: where training stands is known from the optimizer."""
        return {}

    def restore(self, state: Any) -> None:
        """Nothing to take up."""

    def _set(self, watches: bool) -> None:
        for layer in self.model._flatten_layers():
            if isinstance(layer, QuantizedLayer):
                layer.watches = watches
        self.model.make_train_function(force=True)

    def _step(self) -> int:
        return int(step_counter(self.model).numpy())
