"""Looking at the epochs of a training from outside, as a search does that ends what is bad."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping

import keras

from tfopt.train.callbacks import Checkpoint

# Called with the metrics of an epoch; raises to end the training.
Look = Callable[[Mapping[str, float]], None]
_LOOK: contextvars.ContextVar[Look | None] = contextvars.ContextVar("look", default=None)


@contextlib.contextmanager
def watching(look: Look) -> Iterator[None]:
    """Inside the block, every training shows the metrics of each epoch, after its checkpoint is written.

    A training that goes on after an interruption first shows the epochs that it has done, so that whoever looks sees
    the same epochs in the same order as without one.

    >>> with watching(print):
    ...     len(epoch_watchers(Checkpoint("checkpoint.npz")))
    1
    >>> epoch_watchers(Checkpoint("checkpoint.npz"))
    []
    """
    token = _LOOK.set(look)
    try:
        yield
    finally:
        _LOOK.reset(token)


def epoch_watchers(checkpoint: Checkpoint) -> list[keras.callbacks.Callback]:
    """The callback that shows the epochs, where somebody looks."""
    look = _LOOK.get()
    return [] if look is None else [_Show(look, checkpoint)]


class _Show(keras.callbacks.Callback):
    def __init__(self, look: Look, checkpoint: Checkpoint) -> None:
        super().__init__()
        self._look, self._checkpoint = look, checkpoint

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        history = self._checkpoint.history
        for epoch in range(self._checkpoint.epochs_done):
            self._look({key: values[epoch] for key, values in history.items()})

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._look({key: values[-1] for key, values in self._checkpoint.history.items()})
