"""`Replicated`: how a model on a strategy trains as on one device.

Keras 3.15 as it ships fails under MultiWorkerMirroredStrategy, and under any strategy with `steps_per_execution` above
1 or with XLA. Where it trains, it clips gradients and scales losses of each replica by itself, and takes the mean of
the replicas' means where they have unequal shares of a batch. What is overridden here mends that, for one class of
models at a time: Keras' own modules stay as they are.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import require
from tfopt.train.micro import (
    batch_size,
    join_parts,
    mask_of,
    part_or_one,
    part_weights,
    sum_gradients,
    with_mask,
)
from tfopt.train.reduce import sum_over_replicas
from tfopt.train.refused import refuse_horovod_optimizer
from tfopt.train.strategies import is_one_device


class Replicated(keras.Model):
    """What a model does otherwise on a strategy."""

    micro_batches = 1
    synchronize_every = 1
    # Whether each replica is known to have as many examples of every batch: nobody needs to ask then.
    has_equal_shares = False
    # Batches of the next iterator that were read before the first step.
    batches_passed = 0

    def agree(self, wish: float) -> float:
        """Gives this process's wish to all; what all have wished together, as it was known two executions ago.

        So every process learns the same after the same step, and none has to wait for it.
        """
        if is_one_device(self.distribute_strategy):
            return wish
        self._wish.assign(wish)
        return float(self._wishes[0]) if len(self._wishes) == 2 else 0.0

    def compile(self, *arguments: Any, **options: Any) -> None:
        """As Keras' own; refuses what would train otherwise than one device, or not at all."""
        super().compile(*arguments, **options)
        _check_losses(self)
        refuse_horovod_optimizer(self.optimizer)
        own_step = type(self).train_step is Replicated.train_step
        require(
            self.synchronize_every in (1, self.steps_per_execution),
            f"synchronize_every={self.synchronize_every} needs as many steps_per_execution, received "
            f"{self.steps_per_execution}",
        )
        require(
            own_step or self.micro_batches == self.synchronize_every == 1,
            f"{self.name!r} has a train_step of its own, which micro_batches and synchronize_every would not reach",
        )
        if self.jit_compile:
            require(not has_statistics(self), no_xla(self))
            require(own_step, f"{self.name!r} has a train_step of its own, which jit_compile=True would not reach")
        if own_step:
            optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
            require(
                not optimizer.gradient_accumulation_steps,
                "gradient_accumulation_steps of a Keras optimizer does not work on a strategy: pass micro_batches, "
                "or steps_per_execution with a smaller batch",
            )
            # The step below has summed the gradients over the replicas before the optimizer clips or inspects them.
            optimizer._all_reduce_sum_gradients = list

    def fit(self, x: Any = None, *arguments: Any, validation_data: Any = None, **options: Any) -> Any:
        """As Keras' own; each worker takes its share of each batch, from whatever files these come."""
        return super().fit(_shared(x), *arguments, validation_data=_shared(validation_data), **options)

    def evaluate(self, x: Any = None, *arguments: Any, **options: Any) -> Any:
        """As Keras' own; see `fit`."""
        return super().evaluate(_shared(x), *arguments, **options)

    def predict(self, x: Any, *arguments: Any, **options: Any) -> Any:
        """As Keras' own; see `fit`."""
        return super().predict(_shared(x), *arguments, **options)

    def train_step(self, data: Any) -> Any:
        """One step of a replica on its share of a batch."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        replica, size = tf.distribute.get_replica_context(), batch_size(x)
        replicas = replica.num_replicas_in_sync
        if replicas > 1 and has_statistics(self):
            tf.debugging.assert_greater(size, 0, TOO_FEW)
        share = self._share(size)
        compute = _through_xla(self._compute_gradients) if self.jit_compile else self._compute_gradients
        y_pred, loss, gradients = compute(_at_least_one((x, y, weights), size), share)
        self._loss_tracker.update_state(loss * tf.cast(replicas, loss.dtype), sample_weight=size)
        if self.synchronize_every == 1:
            gradients = sum_over_replicas(gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.compute_metrics(x, y, _first(y_pred, size), sample_weight=weights)

    def _share(self, size: Any) -> tf.Tensor:
        """What the loss of this replica is multiplied by: Keras divides the mean over its examples by the replicas."""
        replica = tf.distribute.get_replica_context()
        examples = tf.cast(size * replica.num_replicas_in_sync, tf.float32)
        if self.synchronize_every > 1:
            return tf.math.divide_no_nan(examples, tf.cast(size, tf.float32))
        if self.has_equal_shares:
            return tf.constant(1.0)
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(size))
        return examples / tf.cast(total, tf.float32)

    def _average(self) -> None:
        """Sets what the replicas have learnt by themselves to their mean."""
        known = [each for each in (*self.variables, *self.optimizer.variables) if each.dtype.startswith("float")]
        replica = tf.distribute.get_replica_context()
        sums = sum_over_replicas([tf.convert_to_tensor(each) for each in known])
        for variable, total in zip(known, sums, strict=True):
            variable.assign(total / replica.num_replicas_in_sync)

    def test_step(self, data: Any) -> Any:
        """One step of a replica's evaluation on its share of a batch."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self._predict(x)
        loss = self._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weights, training=False)
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        self._loss_tracker.update_state(loss * tf.cast(replicas, loss.dtype), sample_weight=batch_size(x))
        return self.compute_metrics(x, y, y_pred, sample_weight=weights)

    def predict_step(self, data: Any) -> Any:
        """One step of a replica's prediction on its share of a batch."""
        return self._predict(keras.utils.unpack_x_y_sample_weight(data)[0])

    def _predict(self, x: Any) -> Any:
        size = batch_size(x)
        some = _at_least_one(x, size)
        return _first(self(some, training=False) if self._call_has_training_arg else self(some), size)

    def _compute_gradients(self, data: Any, share: tf.Tensor) -> Any:
        """Outputs, loss and gradients of a replica's share of a batch."""
        if self.micro_batches == 1:
            return self._compute_part(data, share)
        size = batch_size(data)
        shares = part_weights(size, self.micro_batches)
        done: list[Any] = []
        for index in range(self.micro_batches):
            # One after the other, or all would be in memory at once.
            before = [each for each in tf.nest.flatten(done[-1:], expand_composites=True) if each is not None]
            with tf.control_dependencies(before):
                part = part_or_one(data, size, self.micro_batches, index)
                y_pred, loss, gradients = self._compute_part(part, share * shares[index])
                done.append((y_pred, loss * shares[index], gradients))
        y_preds, losses, gradients = zip(*done, strict=True)
        summed = [sum_gradients(each) for each in zip(*gradients, strict=True)]
        return join_parts(y_preds, size), tf.add_n(losses), summed

    def _compute_part(self, data: Any, share: tf.Tensor) -> Any:
        x, y, weights = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True) if self._call_has_training_arg else self(x)
            loss = self._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weights, training=True)
            scaled = self.optimizer.scale_loss(loss * tf.cast(share, loss.dtype))
        gradients = tape.gradient(scaled, self.trainable_weights)
        # Not every kernel's gradient says its shape, which those that travel together must.
        shaped = [
            tf.ensure_shape(each, weight.shape) if isinstance(each, tf.Tensor) else each
            for each, weight in zip(gradients, self.trainable_weights, strict=True)
        ]
        return y_pred, loss, shaped

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # From the types alone: Keras' own takes the mean of a batch over the replicas, of all there is in it.
        if iterator is not None:
            data_batch = iterator.data_adapter.get_tf_dataset().element_spec
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=data_batch)

    def _make_function(self, step_function: Any) -> Any:
        strategy, most = self.distribute_strategy, self.steps_per_execution
        if is_one_device(strategy):
            return super()._make_function(step_function)
        is_local = step_function == self.train_step and self.synchronize_every > 1
        # How many batches of an iterator were used. An end that comes in the midst of an execution would cut off
        # steps that have not ended yet.
        place: list[Any] = [None, 0]

        structure: Any = None

        @tf.autograph.experimental.do_not_convert
        def packed(batch: Any) -> tf.Tensor:
            # In one row, so that processes speak to each other once a step.
            nonlocal structure
            structure = step_function(batch)
            flat = [tf.reshape(tf.cast(each, tf.float32), [-1]) for each in tf.nest.flatten(structure)]
            return tf.concat([*flat, [self._wish]], 0)

        @tf.autograph.experimental.do_not_convert
        def step(batch: Any) -> Any:
            return strategy.run(packed, args=(batch,))

        @tf.autograph.experimental.do_not_convert
        def logs_of(rows: Any) -> Any:
            row = strategy.reduce("SUM", rows, axis=None)
            leaves = tf.nest.flatten(structure)
            *flat, wish = tf.split(row, [*(each.shape.num_elements() for each in leaves), 1])
            means = [
                tf.reshape(part, each.shape) / strategy.num_replicas_in_sync
                for part, each in zip(flat, leaves, strict=True)
            ]
            return tf.nest.pack_sequence_as(structure, means), wish[0]

        @tf.function(reduce_retracing=True)
        def execute_one(iterator: Any) -> Any:
            return logs_of(step(next(iterator)))

        @tf.function(reduce_retracing=True)
        def execute(iterator: Any, count: tf.Tensor) -> Any:
            for _ in tf.range(count - 1):
                step(next(iterator))
            return logs_of(step(next(iterator)))

        @tf.function
        def average() -> None:
            strategy.run(self._average)

        def one_by_one(iterator: Any) -> Any:
            found = execute_one(iterator)
            for _ in range(most - 1):
                try:
                    found = execute_one(iterator)
                except tf.errors.OutOfRangeError:
                    break
            return found

        def function(iterator: Any) -> Any:
            if place[0] is not iterator:
                place[:] = [iterator, self.batches_passed]
                self.batches_passed = 0
            size = int(iterator._cardinality)
            if most == 1:
                logs, wish = execute_one(iterator)
            elif size < 0:
                # Of unknown size, as arrays are.
                logs, wish = one_by_one(iterator)
            else:
                count = min(most, size - place[1])
                if count == 0:
                    raise StopIteration
                place[1] += count
                logs, wish = execute(iterator, tf.constant(count))
            self._wishes.append(wish)
            if is_local:
                average()
            return logs

        return function


TOO_FEW = (
    "A batch has fewer examples than there are replicas, and layers that take statistics of it (BatchNormalization, "
    "watched ranges) need one on each: choose a batch_size that leaves a larger last batch"
)


def has_statistics(model: keras.Model) -> bool:
    """Whether a layer takes statistics of the whole batch, for which replicas speak to each other in its midst."""
    return any(
        (isinstance(layer, keras.layers.BatchNormalization) and layer.trainable) or getattr(layer, "watches", False)
        for layer in model._flatten_layers()
    )


def no_xla(model: keras.Model) -> str:
    """Why a model with such layers cannot be compiled."""
    return (
        f"jit_compile=True on a strategy compiles what each replica does by itself, and {model.name!r} has layers with "
        "statistics of the whole batch (BatchNormalization, watched ranges), where replicas speak to each other in its "
        "midst: leave jit_compile out"
    )


def _shared(data: Any) -> Any:
    """A dataset as workers share it."""
    if not isinstance(data, tf.data.Dataset):
        return data
    options = tf.data.Options()
    # Batch by batch: by files, which is what TensorFlow would choose, they get others.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    if data.options().autotune.enabled is None:
        # Of an iterator on a strategy, TensorFlow 2.21 now and then forgets to wake the thread that tunes it: who drops
        # the iterator, after an epoch, waits for as long again as that took, up to a minute. AUTOTUNE then stands for
        # as many threads as there are cores.
        options.autotune.enabled = False
    return data.with_options(options)


def _check_losses(model: keras.Model) -> None:
    """Raises where the losses of the replicas do not add up to that of one device."""
    losses = [each for each in tf.nest.flatten(model.loss) if isinstance(each, keras.losses.Loss)]
    for each in losses:
        require(
            each.reduction in ("sum_over_batch_size", "mean"),
            f"the loss {each.name!r} has reduction={each.reduction!r}, whose sum over replicas is not that of one "
            'device: use "sum_over_batch_size", and divide by what you need in the loss',
        )


def _through_xla(compute: Callable[..., Any]) -> Callable[..., Any]:
    """`Replicated._compute_gradients` compiled; what it returns keeps its masks, which a compiled function drops."""

    @tf.function(jit_compile=True)
    def compiled(*arguments: Any) -> Any:
        y_pred, *rest = compute(*arguments)
        return y_pred, keras.tree.map_structure(mask_of, y_pred), rest

    def call(*arguments: Any) -> Any:
        y_pred, masks, rest = compiled(*arguments)
        return keras.tree.map_structure(with_mask, y_pred, masks), *rest

    return call


def _at_least_one(data: Any, size: Any) -> Any:
    """`data`, or an example of zeros where a replica has none: kernels give wrong shapes for empty batches."""
    if not tf.is_tensor(size):
        return data

    def fill(part: Any) -> Any:
        if not isinstance(part, tf.Tensor):
            return part
        shape = tf.concat([[1], tf.shape(part)[1:]], 0)
        filled = tf.cond(size > 0, lambda: part, lambda: tf.zeros(shape, part.dtype))
        filled.set_shape([None, *part.shape[1:]])
        return filled

    return keras.tree.map_structure(fill, data)


def _first(outputs: Any, size: Any) -> Any:
    """The first `size` outputs, with their masks."""
    if not tf.is_tensor(size):
        return outputs

    def cut(part: tf.Tensor) -> tf.Tensor:
        mask = mask_of(part)
        return with_mask(part[:size], None if mask is None else mask[:size])

    return keras.tree.map_structure(cut, outputs)
