"""Groups of channels that can be pruned: those of the same layers."""

import dataclasses

import numpy as np

from tfopt.channels.ids import Classes
from tfopt.channels.propagate import Flow, Producer


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Classes of channels made by the same layers; of each class all goes or nothing.

    Args:
      producers: the layers, in running order.
      labels: of the classes, in the order of the channels; int64.
      width: how many channels of a layer a class has: 1, or more behind grouped convolutions.
    """

    producers: tuple[Producer, ...]
    labels: np.ndarray
    width: int


def find_groups(flow: Flow, classes: Classes) -> tuple[list[Group], dict[str, str]]:
    """The groups that may lose channels.

    Returns:
      The groups, in running order; and by the name of each layer none of whose channels may go, why.
    """
    producers, skipped = list(flow.producers.values()), {}
    members: dict[int, list[int]] = {}
    for number, producer in enumerate(producers):
        labels = [int(label) for label in classes.labels[producer.ids]]
        reasons = [classes.frozen[label] for label in labels if label in classes.frozen]
        if len(reasons) == len(labels):
            skipped[producer.name] = reasons[0]
        for label in labels:
            if label not in classes.frozen:
                members.setdefault(label, []).append(number)
    groups: dict[tuple[int, ...], list[int]] = {}
    for label, numbers in members.items():
        groups.setdefault(tuple(dict.fromkeys(numbers)), []).append(label)
    return [
        Group(
            tuple(producers[number] for number in numbers),
            np.array(labels),
            max(members[label].count(numbers[0]) for label in labels),
        )
        for numbers, labels in groups.items()
    ], skipped
