"""Labels and targets as they are found in files, as the numbers that a model learns."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tfopt.config import did_you_mean, require

Task = Literal["classification", "regression"]
# Above it a float stands for several whole numbers.
_MOST = 2**53


def as_targets(
    values: np.ndarray, class_names: Sequence[str] = (), task: Task | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int64 with the names of their classes; or targets as float32 with none.

    Text, truth values and whole numbers are labels, other numbers targets. Classes stand in rising order. With
    `class_names`, text must be one of them, and whole numbers are their places.

    Args:
      values: shape (n,) or (n, 1), none of them missing or infinite.
      class_names: of the classes, where they are known.
      task: "classification" or "regression", where the values alone do not tell.

    Raises:
      ValueError: a label that is no class, several for an example, floats too large to be told apart, or whole numbers
        that look like measurements.

    >>> as_targets(np.array(["b", "a", "b"]))
    (array([1, 0, 1]), ('a', 'b'))
    >>> as_targets(np.array([3, 7, 3, 3, 7]))
    (array([0, 1, 0, 0, 1]), ('3', '7'))
    >>> as_targets(np.array([0.5, 2.0]))
    (array([0.5, 2. ], dtype=float32), ())
    """
    require(task in (None, "classification", "regression"), f"task must be classification or regression, not {task!r}")
    require(
        values.size == len(values), f"labels and targets must be one for each example, their shape is {values.shape}"
    )
    values, numbers = values.reshape(-1), values.dtype.kind in "iuf"
    require(task != "regression" or numbers, f"regression takes numbers, the first target is {values.flat[0]!r}")
    whole = numbers and bool(np.all(values == np.round(values)))
    if task == "regression" or (numbers and not whole):
        require(task != "classification", "classification takes text or whole numbers, the targets have fractions")
        return values.astype("float32"), ()
    if numbers:
        if values.dtype.kind == "f":
            require(
                np.abs(values).max() < _MOST,
                f"the label {np.abs(values).max():.0f} is too large: whole numbers in floats, and in CSV files, can be "
                f'told apart up to {_MOST - 1}. Pass task="regression", or write words',
            )
            values = values.astype("int64")
        if class_names:
            outside = values[(values < 0) | (values >= len(class_names))]
            require(
                not outside.size,
                f"the label {outside[:1]} is out of range: there are {len(class_names)} class_names, so labels are "
                f"0 to {len(class_names) - 1}",
            )
            return values.astype("int64"), tuple(class_names)
        distinct, places = np.unique(values, return_inverse=True)
        require(
            task is not None or 2 * len(distinct) <= len(values),
            f"the target has {len(distinct)} different whole numbers in {len(values)} rows: pass "
            'task="regression", or task="classification" where each is a class',
        )
        return places.astype("int64"), tuple(map(str, distinct.tolist()))
    text = np.array(as_text(values), object)
    names = tuple(class_names) or tuple(sorted(set(text)))
    place = {name: number for number, name in enumerate(names)}
    unknown = sorted(set(text) - set(place))
    if unknown:
        raise ValueError(f"the label {unknown[:1]} is none of the class_names: {did_you_mean(unknown[0], names)}")
    return np.array([place[each] for each in text], "int64"), names


def as_text(values: np.ndarray) -> list[str]:
    """Words as Python has them, whether they are text or bytes.

    >>> as_text(np.array([b"a", b"b"])), as_text(np.array([True, False]))
    (['a', 'b'], ['True', 'False'])
    """
    return [each.decode() if isinstance(each, bytes) else str(each) for each in values.tolist()]
