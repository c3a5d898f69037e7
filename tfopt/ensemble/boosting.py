"""`boosted`: one more member on top of those trained before, which stay as they are."""

from collections.abc import Sequence
from typing import Any

import keras

from tfopt.config import require
from tfopt.ensemble.members import ending, kind, named
from tfopt.ensemble.one_model import compile_like
from tfopt.graph import functional


def boosted(parts: Sequence[keras.Model], new: keras.Model, shrinkage: float = 1.0) -> keras.Model:
    """A model that adds a new member to fixed ones: trained for the task, the new one learns what these leave over.

    With a squared error that is the residual. Of classes the logits are added, and the softmax or sigmoid comes after.

    Args:
      parts: `parts_of` the model that this function returned before; empty at first.
      new: the new member: built, functional or Sequential.
      shrinkage: the factor of the new member's outputs, in (0, 1]; 1 is usual for the first.

    Returns:
      The model, compiled as `new` is; its layers are copies.

    Raises:
      ValueError: the logits of the new member are out of reach, or it differs from the others in outputs.

    Source: Friedman, Greedy Function Approximation: A Gradient Boosting Machine, 2001.

    >>> def make():
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="out")])
    >>> first, second = make(), make()
    >>> first.compile("sgd", "mse"), second.compile("sgd", "mse")
    (None, None)
    >>> model = boosted(parts_of(boosted([], first)), second, shrinkage=0.5)
    >>> [variable.path for variable in model.trainable_variables]
    ['member2_out/kernel', 'member2_out/bias']
    """
    require(0 < shrinkage <= 1, f"shrinkage must be in (0, 1], received {shrinkage!r}")
    task, end = kind(new), ending(new)
    is_values = task == "values"
    number = len(parts) + 1
    member = named(new, f"member{number}", logits=not is_values)
    inner = functional(member, member.name)
    for each in parts:
        require(
            each.output_shape == member.output_shape and each.input_shape == member.input_shape,
            f"the new member takes {member.input_shape} and gives {member.output_shape}, {each.name} takes "
            f"{each.input_shape} and gives {each.output_shape}: they cannot be added",
        )
        each.trainable = False
    inputs = keras.tree.map_structure(
        lambda each: keras.Input(each.shape[1:], dtype=each.dtype, name=each.name), inner._inputs_struct
    )
    if shrinkage != 1:
        scaled = keras.layers.Rescaling(shrinkage, name=f"member{number}_shrunk")(member.output)
        member = keras.Model(inner.input, scaled, name=member.name)
    output: Any = [part(inputs) for part in (*parts, member)]
    output = keras.layers.Add(name="sum")(output) if parts else output[0]
    if not is_values and end != "linear":
        output = keras.layers.Activation(task, name="probabilities")(output)
    model = keras.Model(inputs, output, name="ensemble")
    compile_like(new, model, to_probabilities=False)
    return model


def parts_of(model: keras.Model) -> list[keras.Model]:
    """The members inside a model that `boosted` made."""
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]
