"""`PipelineModel`: runs each partition of a model on its device, forwards and backwards, micro-batch by micro-batch.

TensorFlow runs an operation where `tf.device` says, but not its gradient: that runs on the first device, whatever the
operation did. So each partition has a tape of its own for each micro-batch, whose gradient is taken on its device.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import require
from tfopt.graph import Node, Ref
from tfopt.train.micro import batch_size, join_parts, mask_of, part_or_one, sum_gradients, with_mask


@dataclasses.dataclass(frozen=True)
class Partition:
    """A part of a model on one device.

    Args:
      device: its name in TensorFlow.
      layers: names of its operations in running order; those inside nested models as "encoder/conv".
      parameters: how many numbers its variables hold.
      nodes: the operations themselves.
      receives: the tensors that other partitions make for it, and inputs of the model.
      sends: the tensors that it makes for others, and outputs of the model.
    """

    device: str
    layers: tuple[str, ...]
    parameters: int
    nodes: tuple[Node, ...] = dataclasses.field(repr=False)
    receives: tuple[Ref, ...] = dataclasses.field(repr=False)
    sends: tuple[Ref, ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What a `PipelineModel` runs: partitions in running order, and the placed copy of each layer by its original."""

    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    partitions: tuple[Partition, ...]
    layers: Mapping[keras.Layer, keras.Layer]
    micro_batches: int

    def placed(self, partition: Partition) -> list[keras.Layer]:
        """The copies of a partition's layers, each once."""
        originals = dict.fromkeys(node.operation for node in partition.nodes)
        return [self.layers[each] for each in originals if each in self.layers]


@dataclasses.dataclass(frozen=True, eq=False)
class Taped:
    """What one partition did with one micro-batch: from what, what others take, and what goes into the loss."""

    tape: tf.GradientTape
    taken: Mapping[Ref, Any]
    made: Mapping[Ref, Any]
    final: Sequence[Any]


class PipelineModel(keras.Model):
    """A copy of a model with its layers spread over devices; `place` makes it.

    Args:
      model: that is copied.
      source: the functional model that it is, or has inside, whose structure of inputs and outputs the copy has.
      layout: what runs where.
    """

    def __init__(self, model: keras.Model, source: Any, layout: Layout) -> None:
        super().__init__(name=model.name, dtype=model.dtype_policy)
        # As in a functional model, whose inputs go to the layers as they are.
        self._convert_input_args, self._allow_non_tensor_positional_args = False, True
        # Variables in the model's order, whatever runs first: weights and checkpoints fit both.
        order = {id(variable): index for index, variable in enumerate(model.variables)}
        ranked = sorted(layout.layers, key=lambda layer: min((order[id(v)] for v in layer.variables), default=-1))
        self.placed = [layout.layers[layer] for layer in ranked]
        self.output_names = list(source.output_names)
        self._layout = layout
        # In closures: Keras would take a model in an attribute for a part of this one.
        self._standardize: Callable[[Any], list[Any]] = lambda inputs: source._standardize_inputs(inputs)
        self._pack: Callable[[list[Any]], Any] = lambda flat: keras.tree.pack_sequence_as(source._outputs_struct, flat)
        # While a training step is traced: the tape of the loss, and what the partitions did, by micro-batch.
        self._tape: tf.GradientTape | None = None
        self._done: list[list[Taped]] = []
        self.built = True

    def compile(self, *args: Any, jit_compile: Any = "auto", **options: Any) -> None:
        """As `keras.Model.compile`, without XLA.

        Raises:
          ValueError: `jit_compile=True`.
        """
        require(
            jit_compile in ("auto", False),
            f"jit_compile={jit_compile!r}: XLA compiles for one device, and the model {self.name!r} is on "
            f"{len(self._layout.partitions)}; leave jit_compile=False",
        )
        super().compile(*args, jit_compile=False, **options)

    def save(self, *args: Any, **options: Any) -> None:
        """Refused: the file would need these devices.

        Raises:
          NotImplementedError: always.
        """
        raise NotImplementedError(
            f"this {self.name!r} on several devices is a copy for training: save the model itself after the block of "
            "`place`, or use a callback that saves weights only"
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The outputs, of all micro-batches together."""
        layout = self._layout
        flat = self._standardize(inputs)
        size = batch_size(flat)
        results = []
        for index in range(layout.micro_batches):
            with tf.device(layout.partitions[0].device):
                part = flat if layout.micro_batches == 1 else part_or_one(flat, size, layout.micro_batches, index)
            results.append(self._run(dict(zip(layout.inputs, part, strict=True)), training))
        with tf.device(layout.partitions[-1].device):
            joined = join_parts([[values[ref] for ref in layout.outputs] for values in results], size)
        packed = self._pack(joined)
        return packed[0] if isinstance(packed, list | tuple) and len(packed) == 1 else packed

    def _run(self, values: dict[Ref, Any], training: bool | None) -> dict[Ref, Any]:
        """Runs a micro-batch through all partitions; `values` are the inputs, then also what crosses the cuts."""
        done = []
        for partition in self._layout.partitions:
            taken = {ref: values[ref] for ref in partition.receives}
            with tf.device(partition.device), tf.GradientTape() if self._tape else contextlib.nullcontext() as tape:
                if tape:
                    tape.watch([each for each in taken.values() if _differentiable(each)])
                inside = self._run_partition(partition, dict(taken), training)
                made = {ref: _identity(inside[ref]) for ref in partition.sends}
                if tape:
                    final = [its for ref, its in made.items() if ref in self._layout.outputs and _differentiable(its)]
                    if not self._done:
                        # On their own device; those of the weights, once for all micro-batches.
                        final += [loss for layer in self._layout.placed(partition) for loss in layer.losses]
                    done.append(Taped(tape, taken, made, final))
            if self._tape:
                self._tape.watch(final)
            values |= made
        if self._tape:
            self._done.append(done)
        return values

    def _run_partition(self, partition: Partition, values: dict[Ref, Any], training: bool | None) -> dict[Ref, Any]:
        def fill(value: Any) -> Any:
            return values[value] if isinstance(value, Ref) else value

        for node in partition.nodes:
            args, kwargs = keras.tree.map_structure(fill, (list(node.args), dict(node.kwargs)))
            if training is not None and isinstance(node.operation, keras.Layer):
                # As a functional model does: over what the layer was called with when the model was made.
                kwargs["training"] = training
            outputs = self._layout.layers.get(node.operation, node.operation)(*args, **kwargs)
            values.update(zip(node.outputs, keras.tree.flatten(outputs), strict=True))
        return values

    @property
    def losses(self) -> list[Any]:
        """What is added to the loss; in a training step, as the partitions' tapes have seen it."""
        if self._tape is None:
            return super().losses
        count = {id(its) for done in self._done for each in done for its in each.made.values()}
        return [loss for done in self._done for each in done for loss in each.final if id(loss) not in count]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of the optimizer, as Keras' own; the loss is computed on the last device."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._done = []
        with tf.device(self._layout.partitions[-1].device):
            with tf.GradientTape(watch_accessed_variables=False) as self._tape:
                try:
                    y_pred = self(x, training=True)
                    loss = self._compute_loss(x, y, y_pred, sample_weight, training=True)
                finally:
                    tape, self._tape = self._tape, None
                scaled = self.optimizer.scale_loss(loss)
            outer = tape.gradient(scaled, [[each.final for each in done] for done in self._done])
        self._loss_tracker.update_state(loss, sample_weight=batch_size(x))
        gradients = self._backward(self._done, outer)
        self._done = []
        with _updated_in_place(self.optimizer):
            self.optimizer.apply_gradients([(gradients[id(each)], each) for each in self.trainable_variables])
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _backward(self, done: Sequence[Sequence[Taped]], outer: Sequence[Sequence[Any]]) -> dict[int, Any]:
        """The gradient of each trainable variable, by its id: the sum over the micro-batches, on its device."""
        found: dict[int, list[Any]] = {}
        for micro_batch, its_outer in zip(done, outer, strict=True):
            behind: dict[Ref, list[Any]] = {}
            for partition, taped, final in reversed(
                list(zip(self._layout.partitions, micro_batch, its_outer, strict=True))
            ):
                variables = [each for layer in self._layout.placed(partition) for each in layer.trainable_variables]
                sources = {ref: its for ref, its in taped.taken.items() if _differentiable(its)}
                with tf.device(partition.device):
                    pairs = [*zip(taped.final, final, strict=True)]
                    pairs += [(its, sum_gradients(behind.pop(ref, []))) for ref, its in taped.made.items()]
                    pairs = [(target, gradient) for target, gradient in pairs if gradient is not None]
                    by_source, by_variable = taped.tape.gradient(
                        [target for target, _ in pairs],
                        (list(sources.values()), [each.value for each in variables]),
                        output_gradients=[gradient for _, gradient in pairs],
                    )
                for ref, gradient in zip(sources, by_source, strict=True):
                    behind.setdefault(ref, []).append(gradient)
                for variable, gradient in zip(variables, by_variable, strict=True):
                    found.setdefault(id(variable), []).append(gradient)
        total: dict[int, Any] = {}
        for partition in self._layout.partitions:
            with tf.device(partition.device):
                for layer in self._layout.placed(partition):
                    total |= {id(each): sum_gradients(found[id(each)]) for each in layer.trainable_variables}
        return total


@contextlib.contextmanager
def _updated_in_place(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Inside the block, the optimizer computes each update on the device of its variable."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    update = inner.update_step

    def update_in_place(gradient: Any, variable: tf.Variable, learning_rate: Any) -> None:
        with tf.device(variable.device):
            update(gradient, variable, learning_rate)

    inner.update_step = update_in_place
    try:
        yield
    finally:
        del inner.update_step


def _differentiable(value: Any) -> bool:
    return tf.is_tensor(value) and value.dtype.is_floating


def _identity(value: Any) -> Any:
    """A tensor of its own: a layer may return the very tensor that it received, whose gradients would mix."""
    return with_mask(tf.identity(value), mask_of(value))
