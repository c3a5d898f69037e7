"""Pipeline parallelism: the layers of one model spread over several devices, batches cut into micro-batches.

Source: Huang et al., GPipe, 2019, arXiv:1811.06965.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt.config import did_you_mean, require
from tfopt.graph import Graph, Node, Ref, flatten, functional
from tfopt.train.partition import allowed_cuts, balanced_cuts, crossings
from tfopt.train.pipeline_model import Layout, Partition, PipelineModel
from tfopt.train.refused import refuse_keras_distribution


def split_model(model: keras.Model, devices: Sequence[str], boundaries: Sequence[str] | None = None) -> list[Partition]:
    """Cuts a model into consecutive partitions, one a device.

    Args:
      model: functional or Sequential, built; nested models are cut inside.
      devices: at least two names such as "GPU:0"; they need not exist here.
      boundaries: the first layer of each partition but the first, by name, in running order; inside a nested model as
        "encoder/conv". None: such that the partition with the most parameters has as few as can be.

    Raises:
      ValueError: for a subclassed model, fewer than two devices, fewer layers than devices, weights that two
        partitions would share, and names that no layer has or that are out of order.

    >>> model = keras.Sequential([keras.Input((4,)), *[keras.layers.Dense(4, name=name) for name in "abcd"]])
    >>> [part.layers for part in split_model(model, ["GPU:0", "GPU:1"])]
    [('a', 'b'), ('c', 'd')]
    """
    _check_devices(devices)
    return _split(model, flatten(model), devices, boundaries)


@contextlib.contextmanager
def place(
    model: keras.Model, devices: Sequence[str], micro_batches: int = 1, boundaries: Sequence[str] | None = None
) -> Iterator[PipelineModel]:
    """A copy of a model with its layers on several devices, to compile and train; the model has its weights afterwards.

    The copy trains equal to the model on one device, apart from dropout's random numbers with several micro-batches.
    Variables have the same paths, constraints and regularizers. Save the model, not the copy.

    Args:
      model: as for `split_model`; not trained itself in the block. It need not be compiled.
      devices: as for `split_model`.
      micro_batches: into how many parts each batch is cut, so that devices work at the same time, at least 1.
      boundaries: as for `split_model`.

    Raises:
      ValueError: as `split_model`; under a `tf.distribute` strategy; with several micro-batches, for layers whose
        training needs the whole batch, such as batch normalization.

    Source: Huang et al., GPipe, 2019, arXiv:1811.06965, section 2.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    >>> with place(model, ["GPU:0", "GPU:1"], micro_batches=4) as placed:  # doctest: +SKIP
    ...     placed.compile("sgd", "mse")
    ...     placed.fit(x, y)
    """
    require(
        isinstance(micro_batches, int) and micro_batches >= 1,
        f"micro_batches must be a whole number from 1, received {micro_batches!r}",
    )
    refuse_keras_distribution()
    require(
        not tf.distribute.has_strategy() and getattr(model, "_distribute_strategy", None) is None,
        f"the model {model.name!r} was made, or is used, under a tf.distribute strategy, which places variables "
        "itself: pipeline parallelism and a strategy exclude each other. Leave the strategy's scope",
    )
    graph, source = flatten(model), functional(model, model.name)
    partitions = _split(model, graph, find_devices(devices), boundaries)
    if micro_batches > 1:
        _check_independent(model, source, micro_batches)
    layers = _copy_layers(source, graph, partitions)
    pairs = [pair for old, new in layers.items() for pair in zip(old.variables, new.variables, strict=True)]
    for old, new in pairs:
        new.assign(old)
        # Keras numbers seed generators anew.
        new._path = old.path
        new.trainable, new.constraint, new.regularizer = old.trainable, old.constraint, old.regularizer
    layout = Layout(graph.inputs, graph.outputs, tuple(partitions), layers, micro_batches)
    try:
        yield PipelineModel(model, source, layout)
    finally:
        for old, new in pairs:
            old.assign(new)


def find_devices(names: Sequence[str]) -> list[str]:
    """The devices in TensorFlow's own words.

    Raises:
      ValueError: fewer than two, one twice, or one that does not exist.

    >>> find_devices(["CPU:0", "CPU:99"])
    Traceback (most recent call last):
    ValueError: TensorFlow has no device 'CPU:99'; ...
    """
    _check_devices(names)
    known = {_short(each.name): each.name for each in tf.config.list_logical_devices()}
    for name in names:
        require(_short(name) in known, f"TensorFlow has no device {name!r}; {did_you_mean(_short(name), known)}")
    return [known[_short(name)] for name in names]


def _short(device: str) -> str:
    """CPU:0 for /job:localhost/replica:0/task:0/device:CPU:0, and for cpu:0."""
    return device.rpartition("/")[2].removeprefix("device:").upper()


def _check_devices(names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise TypeError(f"devices must be a list of names, received the string {names!r}")
    require(
        len(names) > 1, f"devices must be two at least, received {list(names)}: on one, train the model without `place`"
    )
    short = [_short(name) for name in names]
    twice = sorted({name for name in short if short.count(name) > 1})
    require(not twice, f"devices has {', '.join(twice)} twice: each device gets one partition")


def _split(
    model: keras.Model, graph: Graph, devices: Sequence[str], boundaries: Sequence[str] | None
) -> list[Partition]:
    nodes, costs = graph.nodes, [0] * len(graph.nodes)
    calls: dict[keras.Layer, list[int]] = {}
    for index, node in enumerate(nodes):
        if getattr(node.operation, "variables", None):
            calls.setdefault(node.operation, []).append(index)
    _check_owners(calls)
    require(
        len(calls) >= len(devices),
        f"the model {model.name!r} has {len(calls)} layers with weights, fewer than the {len(devices)} devices: leave "
        "out some of them",
    )
    for layer, places in calls.items():
        costs[places[0]] = layer.count_params()
    shared = {layer: (places[0], places[-1]) for layer, places in calls.items() if len(places) > 1}
    if boundaries is None:
        allowed = allowed_cuts(len(nodes), shared.values())
        require(
            len(allowed) >= len(devices) - 1,
            f"the model {model.name!r} cannot be cut for {len(devices)} devices: between two calls of a layer "
            f"({', '.join(layer.name for layer in shared)}), whose weights are on one device, there can be no cut",
        )
        cuts = balanced_cuts(costs, len(devices), allowed)
    else:
        cuts = _cuts_at(model, nodes, boundaries, len(devices))
        for layer, (first, last) in shared.items():
            between = [nodes[cut].name for cut in cuts if first < cut <= last]
            require(
                not between,
                f"the boundary {', '.join(between)} would cut between two calls of the layer {layer.name!r}, whose "
                "weights are on one device: move it before the first call or behind the last",
            )
    crossing = crossings([(node.inputs, node.outputs) for node in nodes], cuts, graph.outputs)
    spans = itertools.pairwise([0, *cuts, len(nodes)])
    return [
        Partition(
            device, tuple(node.name for node in nodes[start:stop]), sum(costs[start:stop]), nodes[start:stop], *its
        )
        for device, (start, stop), its in zip(devices, spans, crossing, strict=True)
    ]


def _check_owners(layers: Iterable[keras.Layer]) -> None:
    owners: dict[int, keras.Layer] = {}
    for layer in layers:
        for variable in layer.variables:
            first = owners.setdefault(id(variable), layer)
            require(
                first is layer,
                f"the layers {first.name!r} and {layer.name!r} share the variable {variable.path}, which their copies "
                "on the devices would not: call one layer twice instead",
            )


def _cuts_at(model: keras.Model, nodes: Sequence[Node], boundaries: Sequence[str], parts: int) -> list[int]:
    if isinstance(boundaries, str):
        raise TypeError(f"boundaries must be a list of names, received the string {boundaries!r}")
    require(
        len(boundaries) == parts - 1,
        f"boundaries names the first layer of each partition but the first: {parts} devices need {parts - 1}, "
        f"received {len(boundaries)}",
    )
    cuts = []
    for name in boundaries:
        found = [index for index, node in enumerate(nodes) if node.name == name or node.name.startswith(f"{name}/")]
        known = [node.name for node in nodes]
        require(bool(found), f"the model {model.name!r} has no layer {name!r}; {did_you_mean(name, known)}")
        cuts.append(found[0])
    require(
        cuts == sorted(set(cuts)) and cuts[0] > 0,
        f"boundaries must be in running order, without the model's first layer: received {list(boundaries)}, which are "
        f"at {cuts} of {', '.join(node.name for node in nodes)}",
    )
    return cuts


def _copy_layers(source: Any, graph: Graph, partitions: Sequence[Partition]) -> dict[keras.Layer, keras.Layer]:
    """A copy of each layer, built on its device."""
    values: dict[Ref, Any] = {
        ref: keras.KerasTensor(tensor.shape, tensor.dtype, sparse=tensor.sparse, ragged=tensor.ragged)
        for ref, tensor in zip(graph.inputs, source._inputs, strict=True)
    }

    def fill(value: Any) -> Any:
        return values[value] if isinstance(value, Ref) else value

    copies: dict[keras.Layer, keras.Layer] = {}
    for partition in partitions:
        with tf.device(partition.device):
            for node in partition.nodes:
                old = node.operation
                args, kwargs = keras.tree.map_structure(fill, (list(node.args), dict(node.kwargs)))
                if isinstance(old, keras.Layer):
                    if old not in copies:
                        copies[old] = type(old).from_config(old.get_config())
                    outputs = copies[old](*args, **kwargs)
                else:
                    # Called, it would note the call for good, though it is the user's.
                    outputs = old.compute_output_spec(*args, **kwargs)
                values.update(zip(node.outputs, keras.tree.flatten(outputs), strict=True))
    for old, new in copies.items():
        before, after = ([(each.name, tuple(each.shape)) for each in layer.variables] for layer in (old, new))
        require(
            before == after,
            f"copying the layer {old.name!r} changed its variables from {before} to {after}: its get_config() does not "
            "describe it wholly; complete it",
        )
    return copies


def _check_independent(model: keras.Model, source: Any, micro_batches: int) -> None:
    """Refuses layers whose training needs the whole batch: found by tracing the model, without running it."""
    scope = keras.StatelessScope(collect_losses=True)

    @tf.function(autograph=False)
    def trace(inputs: Any) -> None:
        with scope:
            model(inputs, training=True)

    trace.get_concrete_function(
        keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), source._inputs_struct)
    )
    seeds = {id(each.state) for layer in model._flatten_layers() for each in layer._seed_generators}
    updated = [
        each.path for each in model.non_trainable_variables if id(each) in scope.state_mapping and id(each) not in seeds
    ]
    advice = "freeze these layers (trainable = False), or use micro_batches=1"
    require(
        not updated,
        f"micro_batches={micro_batches} would not train as one device does: {', '.join(updated)} are computed from the "
        f"whole batch at each step, and would be from a part of it, several times; {advice}",
    )
    require(
        not scope.losses,
        f"micro_batches={micro_batches}: a layer of {model.name!r} adds to the loss by add_loss or an activity "
        "regularizer, for a part of the batch each time, and how to sum that up is not known; use micro_batches=1",
    )
    for tensor in source._outputs:
        require(
            len(tensor.shape) > 0 and tensor.shape[0] is None,
            f"micro_batches={micro_batches}: the output {tensor.name!r} of shape {tensor.shape} has no open batch size "
            "first, so the outputs of parts of a batch cannot be put together; use micro_batches=1",
        )
