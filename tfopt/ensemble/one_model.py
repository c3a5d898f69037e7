"""`as_one_model`: several trained models as one, with one input."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfopt.config import require
from tfopt.ensemble.combine import Method, check_method, check_weights
from tfopt.ensemble.layers import Vote
from tfopt.ensemble.members import ending, kind, named
from tfopt.graph import functional
from tfopt.quantize.frozen import is_quantized
from tfopt.train.task import Task, own_task


def as_one_model(
    members: Sequence[keras.Model],
    method: Method = "mean",
    weights: Sequence[float] | None = None,
    name: str = "ensemble",
) -> keras.Model:
    """Several trained models as one Keras model: each gets the same input, and their outputs become one.

    It is an ordinary model: it can be trained on, pruned, quantized and exported. Its layers are copies, whose names
    begin with "member1_", "member2_", …. It is compiled as the first member is.

    Args:
      members: two or more built models, functional or Sequential, with the same input and one output each of the same
        shape. Those that end in no softmax or sigmoid must be compiled with the loss that they were trained with.
      method: "mean" of probabilities, or of the numbers of a regression. "geometric": of the logits, which is the
        geometric mean of the probabilities, and the smaller graph. "vote": the share of members that find a class the
        likeliest.
      weights: of the members, at least 0; None: all the same.
      name: of the model.

    Returns:
      The model. It gives probabilities; logits where the members do and the method is "geometric".

    Raises:
      ValueError: an unknown method, fewer than two members, members that differ in inputs, outputs or task, several
        outputs, a subclassed or quantization-aware member, or a method for classes where there are none.

    Source: Lakshminarayanan et al., Deep Ensembles, 2017, arXiv:1612.01474; Hinton, Products of Experts, 2002.

    >>> members = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")]) for _ in range(2)]
    >>> model = as_one_model(members)
    >>> x = np.ones((1, 4))
    >>> expected = (members[0](x) + members[1](x)) / 2
    >>> bool(np.allclose(model(x), expected)), model.count_params()
    (True, 30)
    """
    check_method(method)
    members = check_members(members)
    shares = None if weights is None else check_weights(weights, len(members))
    task = kind(members[0])
    require(
        task != "values" or method == "mean",
        f"method={method!r} is for classes, and the members give plain numbers: take the mean",
    )
    is_logits = task != "values" and ending(members[0]) == "linear"
    first = functional(members[0], members[0].name)
    inputs = keras.tree.map_structure(
        lambda each: keras.Input(each.shape[1:], dtype=each.dtype, name=each.name), first._inputs_struct
    )
    parts = [named(each, f"member{index}", method == "geometric") for index, each in enumerate(members, 1)]
    outputs = [part(inputs) for part in parts]
    if method != "geometric" and is_logits:
        outputs = [
            keras.layers.Activation(task, name=f"member{index}_probabilities")(each)
            for index, each in enumerate(outputs, 1)
        ]
    if method == "vote":
        outputs = [Vote(name=f"member{index}_vote")(each) for index, each in enumerate(outputs, 1)]
    output = weighted_sum(outputs, shares)
    if method == "geometric" and not is_logits:
        output = keras.layers.Activation(task, name="probabilities")(output)
    model = keras.Model(inputs, output, name=name)
    compile_like(members[0], model, is_logits and method != "geometric")
    return model


def check_members(members: Any) -> list[keras.Model]:
    """The members as a list.

    Raises:
      TypeError: one is no Keras model.
      ValueError: they do not make an ensemble; see `as_one_model`.
    """
    members = [members] if isinstance(members, keras.Model) else list(members)
    for each in members:
        if not isinstance(each, keras.Model):
            raise TypeError(f"a member must be a Keras model, received {type(each).__name__}: load files first")
    require(len(members) >= 2, f"an ensemble has two members or more, received {len(members)}")
    described = [_described(each) for each in members]
    for index, (each, own) in enumerate(zip(members, described, strict=True), 1):
        for what, first, mine in zip(("inputs", "outputs", "task"), described[0], own, strict=True):
            require(
                first == mine,
                f"the members have different {what}: those of member 1 ({members[0].name!r}) are {first}, those of "
                f"member {index} ({each.name!r}) {mine}",
            )
    return members


def weighted_sum(outputs: Sequence[Any], weights: np.ndarray | None) -> Any:
    """The weighted sum of some tensors of a graph; without weights, their mean."""
    if weights is None:
        return keras.layers.Average(name="mean")(outputs)
    scaled = [
        keras.layers.Rescaling(float(weight), name=f"member{index}_weight")(each)
        for index, (each, weight) in enumerate(zip(outputs, weights, strict=True), 1)
    ]
    return keras.layers.Add(name="weighted_mean")(scaled)


def compile_like(source: keras.Model, model: keras.Model, to_probabilities: bool) -> None:
    """Compiles a model for the task of another, if that is compiled.

    Args:
      source: whose task it is.
      model: to compile.
      to_probabilities: whether it gives probabilities where `source` gives logits.
    """
    if not source.compiled:
        return
    task = own_task(source)
    if to_probabilities:
        loss, metrics, weighted = (
            keras.tree.map_structure(_of_probabilities, part)
            for part in (task.loss, task.metrics, task.weighted_metrics)
        )
        task = Task(loss, metrics, weighted, task.loss_weights)
    task.compile(model, jit_compile=False)


def _of_probabilities(part: Any) -> Any:
    """A loss or metric for logits as one for probabilities."""
    if not isinstance(part, keras.losses.Loss | keras.metrics.Metric):
        return part
    config = part.get_config()
    if config.get("from_logits"):
        config["from_logits"] = False
    if isinstance(part, keras.metrics.BinaryAccuracy) and config["threshold"] == 0.0:
        config["threshold"] = 0.5
    return type(part).from_config(config)


def _described(model: keras.Model) -> tuple[Any, Any, str]:
    """What must be the same in all members: inputs, output, task."""
    require(
        not is_quantized(model),
        f"the member {model.name!r} is quantization-aware: make one model of float members, then call quantize_aware "
        "on it, so that their mean is computed in integers too",
    )
    inner = functional(model, model.name)
    require(
        len(inner._outputs) == 1,
        f"the member {model.name!r} has {len(inner._outputs)} outputs; an ensemble has one",
    )
    inputs = keras.tree.map_structure(lambda each: f"{each.dtype} {tuple(each.shape)}", inner._inputs_struct)
    output = tuple(inner._outputs[0].shape)
    end = ending(model)
    gives = "logits" if end == "linear" and kind(model) != "values" else "outputs"
    return inputs, output, f"{kind(model)} {gives}"
