"""Preparation of inputs: what must be known of the data is learned from the training split alone."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.config import Config, require
from tfopt.data.dataset import SPLITS, Data

# Large enough that the cost of a call does not count.
_BATCH = 256


@dataclasses.dataclass(frozen=True, repr=False)
class Preparation(Config):
    """A change of all inputs, the same in every split and wherever the model is used.

    A subclass writes `adapt`; where there is nothing to learn it returns its function at once.
    """

    def adapt(self, inputs: tf.data.Dataset) -> Callable[[Any], Any]:
        """Learns from training inputs; returns the change, a pure function of a batch of inputs.

        Args:
          inputs: batches of the training split's inputs, in a fixed order.
        """
        raise NotImplementedError(f"{type(self).__name__} must define adapt(inputs)")


def prepare(data: Data, steps: Sequence[Preparation], *, cache: bool = True) -> Data:
    """Prepares the inputs of all splits, one step after the other.

    Each step learns from the training split, as the steps before it left it, and from nothing else: validation and
    test stay unseen. Augmentations and `transform` of the data come after it.

    Args:
      data: of any kind that the steps take.
      steps: such as those in `tfopt.tabular`, `tfopt.text` and `tfopt.signals`.
      cache: keep the prepared examples in memory; else they are prepared again in every epoch.

    Returns:
      The data; `prepared` holds what each step has become, for use with the trained model.

    Raises:
      TypeError: a step that is no `Preparation`.
      ValueError: data that a step cannot take, or augmentations that do not fit any more.

    >>> from tfopt.data.dataset import from_arrays
    >>> class Centre(Preparation):
    ...     def adapt(self, inputs):
    ...         mean = np.concatenate(list(inputs.as_numpy_iterator())).mean(0)
    ...         return lambda x: x - mean
    >>> data = prepare(from_arrays((np.full((20, 3), 7.0), np.arange(20) % 2)), [Centre()])
    >>> next(iter(data.test))[0].numpy()[0]
    array([0., 0., 0.])
    """
    for step in steps:
        if not isinstance(step, Preparation):
            raise TypeError(f"steps must be preparations such as tfopt.tabular.Scale, received {step!r}")
    require(bool(steps), "there are no steps to prepare the data with")
    parts: dict[str, tf.data.Dataset] = {split: data.examples(split) for split in SPLITS}
    prepared = list(data.prepared)
    for step in steps:
        change = step.adapt(parts["train"].batch(_BATCH).map(lambda x, *rest: x).prefetch(tf.data.AUTOTUNE))
        parts = {split: _changed(part, change) for split, part in parts.items()}
        prepared.append(change)
    if cache:
        parts = {split: part.cache() for split, part in parts.items()}
    return dataclasses.replace(data, splits=parts, read=None, prepared=tuple(prepared))


def save_prepared(prepared: Sequence[Callable[[Any], Any]], folder: pathlib.Path) -> list[str]:
    """Writes what was learned, for use with the trained model; returns the names of the files.

    Numbers and arrays go to `1-Scaled.npz`, a field each; what has a method `save`, such as a tokenizer, writes
    `2-WordTokenizer.json`. Of plain functions there is nothing to write.
    """
    names = []
    for number, each in enumerate(prepared, 1):
        stem = f"{number}-{type(each).__name__}"
        if hasattr(each, "save"):
            names.append(f"{stem}.json")
            each.save(folder / names[-1])
        elif dataclasses.is_dataclass(each) and dataclasses.fields(each):
            fields = {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
            if all(np.asarray(value).dtype.kind in "biuf" for value in fields.values()):
                names.append(f"{stem}.npz")
                np.savez(folder / names[-1], **fields)
    return names


def _changed(examples: tf.data.Dataset, change: Callable[[Any], Any]) -> tf.data.Dataset:
    batches = examples.batch(_BATCH).map(
        lambda x, *rest: (change(x), *rest), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return batches.unbatch().apply(tf.data.experimental.assert_cardinality(examples.cardinality()))
