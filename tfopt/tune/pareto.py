"""The Pareto front: what nothing else beats in every objective."""

from collections.abc import Sequence

import numpy as np

from tfopt.config import require


def pareto_front(values: np.ndarray, maximize: Sequence[bool]) -> np.ndarray:
    """Which points no other one dominates: is as good in each objective, and better in one. Equal points stay.

    Args:
      values: one row for each point, one column for each objective, float, shape (points, objectives); finite.
      maximize: for each objective, whether more is better.

    Returns:
      bool, shape (points,).

    Raises:
      ValueError: the shapes do not fit, or a value is not finite.

    Source: Deb, Multi-Objective Optimization using Evolutionary Algorithms, 2001, definition 2.5.

    >>> pareto_front(np.array([[0.9, 100.0], [0.8, 50.0], [0.8, 60.0]]), maximize=[True, False])
    array([ True,  True, False])
    """
    values = np.asarray(values, "float64")
    require(
        values.ndim == 2 and values.shape[1] == len(maximize) > 0,
        f"values must have the shape (points, {len(maximize)}), a column for each objective, received {values.shape}",
    )
    require(bool(np.isfinite(values).all()), "values must be finite: leave out points that have no value")
    costs = np.where(np.asarray(maximize), -values, values)
    # [i, j]: point i against point j.
    no_worse = (costs[:, None] <= costs[None]).all(axis=-1)
    better = (costs[:, None] < costs[None]).any(axis=-1)
    return np.asarray(~(no_worse & better).any(axis=0))
