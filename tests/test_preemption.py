"""Trainings that are ended by a SIGTERM within an epoch, and go on there."""

import os
import signal

import keras
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import blobs
from tests.test_resume import noisy_model
from tests.test_train import same
from tfopt.train.checkpoint import read_checkpoint
from tfopt.train.fit import Fit
from tfopt.train.loop import train
from tfopt.workers.preemption import PREEMPTED, Preempted, is_asked_to_end, preemptible


class Terminate(keras.callbacks.Callback):
    """Sends this process a SIGTERM after a batch of an epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.when, self.now = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == self.when:
            os.kill(os.getpid(), signal.SIGTERM)

    def state(self):
        return {}

    def restore(self, state):
        pass


def run(folder, model, callbacks, strategy=None, **options):
    data = tfopt.from_arrays(blobs(240), batch_size=16)
    with preemptible():
        return train(model, data, 3, Fit(**options), folder=folder, label="t", callbacks=callbacks, strategy=strategy)


@pytest.mark.parametrize(
    ("steps_per_execution", "replicas", "batch", "micro_batches"),
    [
        pytest.param(1, 1, 4, 1, marks=pytest.mark.slow),
        (3, 1, 5, 2),
        # Replicas agree two executions later, of the four that an epoch has here.
        *(pytest.param(steps, 2, batch, 1, marks=pytest.mark.slow) for steps, batch in ((1, 5), (3, 2))),
    ],
)
def test_goes_on_within_the_epoch(steps_per_execution, replicas, batch, micro_batches, mirrored, tmp_path):
    strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
    options = {"steps_per_execution": steps_per_execution, "strategy": strategy, "micro_batches": micro_batches}
    whole, history = run(tmp_path / "whole", noisy_model(), [Terminate(9, 9)], **options)
    with pytest.raises(Preempted) as ended:
        run(tmp_path / "broken", noisy_model(), [Terminate(1, batch)], **options)
    assert ended.value.code == PREEMPTED
    assert not is_asked_to_end()
    arrays, _, epochs_done = read_checkpoint(tmp_path / "broken" / "checkpoint.npz")
    assert epochs_done == 1
    assert batch < int(arrays["steps_done"]) < 12
    # As in another process, fresh weights and seeds: all comes from the file.
    resumed, again = run(tmp_path / "broken", noisy_model(seed=7), [Terminate(9, 9)], **options)
    assert same(whole, resumed)
    for name, values in history.items():
        # The sums that two replicas have made of a metric are added up in the checkpoint.
        assert again[name] == pytest.approx(values, rel=1e-6 if replicas == 2 else 0, abs=0), name


def test_a_sigterm_at_the_end_of_the_last_epoch_is_heeded(tmp_path):
    with pytest.raises(Preempted):
        run(tmp_path, noisy_model(), [Terminate(2, 11)])
    assert read_checkpoint(tmp_path / "checkpoint.npz")[2] == 3


# Replicas agree while they evaluate, and in the next execution.
@pytest.mark.parametrize(("replicas", "epochs"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_where_an_epoch_is_one_execution_a_sigterm_is_heeded_between_two(replicas, epochs, mirrored, tmp_path):
    strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
    with pytest.raises(Preempted):
        run(tmp_path, noisy_model(), [Terminate(0, 11)], strategy, steps_per_execution=12)
    assert read_checkpoint(tmp_path / "checkpoint.npz")[2] == epochs


def test_outside_of_a_training_a_sigterm_ends_at_once():
    with pytest.raises(Preempted), preemptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_frozen_ranges_when_the_epoch_goes_on(trained, tmp_path):
    data = tfopt.from_arrays(blobs(240), batch_size=16)

    def aware(folder, end):
        model = tfopt.quantize_aware(trained)
        tfopt.calibrate(model, data)
        callbacks = [tfopt.FreezeRanges(14), Terminate(*end)]
        with preemptible():
            return train(model, data, 3, Fit(1e-2), folder=folder, label="t", callbacks=callbacks)

    whole, history = aware(tmp_path / "whole", (9, 9))
    with pytest.raises(Preempted):
        aware(tmp_path / "broken", (1, 5))
    resumed, again = aware(tmp_path / "broken", (9, 9))
    assert again == history
    assert same(whole, resumed)
