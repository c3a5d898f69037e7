"""The likeliest classes of an output, by name."""

from typing import Any

import numpy as np

from tfopt.config import require
from tfopt.serve.description import Description


def top_classes(values: np.ndarray, description: Description, count: Any) -> list[list[dict[str, Any]]]:
    """The highest values on the last axis of each example, the highest first.

    Args:
      values: an output, shape (examples, classes), or (classes,) without an axis of examples.
      description: has the names.
      count: how many classes, at least 1; more than there are: all.

    Returns:
      For each example a list of {"index", "label", "score"}; "label" is "" where the file names no classes.

    Raises:
      ValueError: there is nothing to choose from, or `count` is no such number.

    >>> named = Description("litert", (), (), -1, {"class_names": ["cat", "dog"]})
    >>> top_classes(np.array([[0.25, 0.75]]), named, 1)
    [[{'index': 1, 'label': 'dog', 'score': 0.75}]]
    """
    is_whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
    require(is_whole, f"classification must be a number of classes, at least 1, received {count!r}")
    require(
        values.ndim in (1, 2) and values.dtype.kind in "fiu",
        f"classes are chosen from an output of shape (examples, classes), this one has shape {list(values.shape)}",
    )
    rows = values if values.ndim == 2 else values[None]
    names = description.class_names if len(description.class_names) == rows.shape[1] else ("",) * rows.shape[1]
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    return [
        [{"index": int(i), "label": names[i], "score": row[i].item()} for i in best]
        for row, best in zip(rows, order, strict=True)
    ]
