"""One training, the same for every stage that trains: promises kept, guarded, resumable."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.data import Data
from tfopt.distill.teaching import SameTeacher
from tfopt.invariants import Invariant, keeping
from tfopt.progress import current_bar
from tfopt.stage import Stage, Work
from tfopt.train.callbacks import Advance, Checkpoint, NanGuard, StopEarly
from tfopt.train.fit import Fit
from tfopt.train.layer_rates import layer_factors, with_factors
from tfopt.train.precision import computes_in, to_policy
from tfopt.train.refused import refuse_keras_distribution
from tfopt.train.replicas import on_strategy
from tfopt.train.replicated import has_statistics
from tfopt.train.smooth import smoothed
from tfopt.train.strategies import is_one_device
from tfopt.train.task import build_state, task_of
from tfopt.train.watch import epoch_watchers
from tfopt.workers.peers import Peers
from tfopt.workers.preemption import saves_when_asked


def train_in(
    stage: Stage,
    work: Work,
    epochs: int,
    fit: Fit,
    *,
    model: keras.Model | None = None,
    data: Data | None = None,
    keep: Sequence[Invariant] | None = None,
    callbacks: Sequence[Any] = (),
    part: str = "",
) -> tuple[keras.Model, dict[str, list[float]]]:
    """`train` for a stage: under its name, with its checkpoint, and a model from the chain for a teacher.

    Args:
      stage: whose training it is.
      work: as it entered the stage.
      epochs: as of `train`.
      fit: as of `train`.
      model: in place of the work's.
      data: in place of the work's.
      keep: promises in place of the work's.
      callbacks: as of `train`.
      part: name of one of several trainings of the stage.
    """
    folder = stage.partial_folder(work)
    return train(
        work.need_model() if model is None else model,
        work.need_data() if data is None else data,
        epochs,
        fit,
        folder=folder / part if part else folder,
        label=f"{stage.name}-{part}" if part else stage.name,
        keep=work.invariants if keep is None else keep,
        callbacks=callbacks,
        strategy=work.strategy,
        entered=None if fit.distill is None else work.snapshot(fit.distill.stage),
    )


def train(
    model: keras.Model,
    data: Data,
    epochs: int,
    fit: Fit,
    *,
    folder: pathlib.Path,
    label: str,
    keep: Sequence[Invariant] = (),
    callbacks: Sequence[Any] = (),
    strategy: tf.distribute.Strategy | None = None,
    entered: pathlib.Path | None = None,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Trains a model; goes on from where it stood, within an epoch too, where `folder` holds a checkpoint.

    Args:
      model: a built Keras model; it is trained in place, except where another precision asks for a copy.
      data: what to train on; the validation split is evaluated after each epoch.
      epochs: passes over the training split, at least 1.
      fit: how to train.
      folder: where the checkpoint goes.
      label: what the TensorBoard logs are called.
      keep: promises to hold at every step.
      callbacks: further Keras callbacks with `state()` and `restore(state)`.
      strategy: on which devices and hosts; None: on one device.
      entered: the file of a model from the chain: the teacher, where `fit` asks for one and names none.

    Returns:
      The trained model in float32, and the metrics by epoch.
    """
    refuse_keras_distribution()
    task, steps = task_of(model, data), data.steps_per_epoch
    keeps_precision = fit.precision == "float32" and computes_in(model, "float32")
    student = model if keeps_precision else to_policy(model, fit.precision)
    peers = Peers(strategy or tf.distribute.get_strategy())
    is_replicated = not is_one_device(peers.strategy)
    whole = student
    if fit.distill is not None:
        whole, data = fit.distill.begin(student, data, entered, peers)
        callbacks = [*callbacks, SameTeacher(whole.teacher)]
    trainee = whole
    factors = layer_factors(whole, fit.layer_rates or {})
    with contextlib.ExitStack() as stack:
        stack.enter_context(saves_when_asked())
        if is_replicated or fit.micro_batches > 1:
            peers.take_weights_of_chief(whole.variables)
            copy = on_strategy(whole, peers.strategy, fit.micro_batches, fit.synchronize_every)
            trainee = stack.enter_context(copy)
            replicas = peers.strategy.num_replicas_in_sync
            trainee.has_equal_shares = data.sizes["train"] % data.batch_size % replicas == 0
        stack.enter_context(keeping(trainee, keep))
        optimizer = fit.make_optimizer(epochs * steps)
        smoothed(task, fit.label_smoothing).compile(
            trainee,
            optimizer=with_factors(optimizer, factors) if fit.layer_rates else optimizer,
            jit_compile=fit.uses_xla() and not (is_replicated and fit.jit_compile is None and has_statistics(whole)),
            steps_per_execution=max(fit.steps_per_execution, fit.synchronize_every),
        )
        epoch = tf.Variable(0, dtype=tf.int64)
        # Finite batches, one set an epoch: of an endless stream, steps_per_execution would take too many.
        batches = data.training_batches(epoch)
        build_state(trainee, batches)
        logs = str(folder.parent / "tensorboard" / label)
        boards = [keras.callbacks.TensorBoard(logs)] if fit.tensorboard and peers.is_chief else []
        stop = [StopEarly(fit.early_stopping)] if fit.early_stopping else []
        lower = fit.rate_callbacks()
        checkpoint = Checkpoint(folder / "checkpoint.npz", [*callbacks, *stop, *lower], writes=peers.is_chief)
        checkpoint.resume(trainee)
        first = checkpoint.epochs_done
        over = any(each.stopped for each in stop)
        bar = current_bar(epochs * steps)
        done = first * steps + checkpoint.steps_done
        bar.update(done, f"continued after step {done}" if done else None)
        set_epoch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda number, logs: epoch.assign(number))
        trainee.fit(
            batches,
            epochs=epochs,
            # A training that was over is ended once more: callbacks do their last part there.
            initial_epoch=epochs if over else first,
            validation_data=data.validation,
            class_weight=fit.class_weights(data),
            shuffle=False,
            verbose=0,
            # The guard before the checkpoint: an epoch that went wrong is never saved.
            callbacks=[
                set_epoch,
                NanGuard(),
                *callbacks,
                *stop,
                *lower,
                checkpoint,
                *epoch_watchers(checkpoint),
                Advance(bar, first, steps),
                *boards,
            ],
        )
    trained = student if student is model else to_policy(student, "float32")
    task.compile(trained, jit_compile=fit.uses_xla())
    return trained, checkpoint.history
