"""Where clusters begin, and which one a weight belongs to: pure maths on arrays."""

from typing import Literal

import numpy as np

Initialization = Literal["kmeans++", "linear", "density"]
INITIALIZATIONS = ("kmeans++", "linear", "density")


def first_centroids(values: np.ndarray, count: int, initialization: Initialization, seed: int = 0) -> np.ndarray:
    """The first centroids of some weights.

    Args:
      values: weights, shape (weights,).
      count: how many centroids, at least 1.
      initialization: "kmeans++": k-means from a k-means++ start, the least squared error. "linear": evenly spaced
        between the extremes, so that the rare large weights have centroids too. "density": as many weights for each.
      seed: of k-means.

    Returns:
      float32, shape (count,), rising; not all different where there are fewer different weights.

    Source: Han et al., Deep Compression, 2016, arXiv:1510.00149, section 3.2; Arthur and Vassilvitskii, k-means++: the
    Advantages of Careful Seeding, 2007.

    >>> first_centroids(np.array([0.0, 1.0, 4.0]), 3, "linear")
    array([0., 2., 4.], dtype=float32)
    >>> first_centroids(np.array([0.0, 0.1, 0.2, 9.0]), 2, "density").round(2)
    array([0.05, 4.6 ], dtype=float32)
    """
    values = np.sort(np.asarray(values, np.float64))
    if initialization == "linear":
        found = np.linspace(values[0], values[-1], count)
    elif initialization == "density":
        found = np.array([part.mean() if part.size else values[-1] for part in np.array_split(values, count)])
    else:
        found = _kmeans(values, count, seed)
    return np.sort(found).astype("float32")


def _kmeans(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn import cluster

    distinct, weights = np.unique(values, return_counts=True)
    if distinct.size <= count:
        return np.append(distinct, np.full(count - distinct.size, distinct[-1]))
    means = cluster.KMeans(count, n_init=1, random_state=seed).fit(distinct[:, None], sample_weight=weights)
    return means.cluster_centers_[:, 0]


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The index of the nearest of some rising centroids, for each value.

    >>> nearest(np.array([0.4, 0.6, 7.0]), np.array([0.0, 1.0, 2.0]))
    array([0, 1, 2])
    """
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
