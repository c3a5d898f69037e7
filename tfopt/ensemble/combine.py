"""How the outputs of several members become one, and what each is best worth: pure maths on arrays."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tfopt.config import require

Method = Literal["mean", "geometric", "vote"]
METHODS = ("mean", "geometric", "vote")
# What a probability is at least taken for: zeros have no logarithm.
_FLOOR = 1e-30
# By how much, in nats, another mixture may be likelier; after the last round at most log(members) / rounds.
_ENOUGH = 1e-6
_ROUNDS = 20_000


def check_method(method: str) -> None:
    """Raises a ValueError for a method that does not exist.

    >>> check_method("average")
    Traceback (most recent call last):
    ValueError: method must be one of mean, geometric, vote; received 'average'
    """
    require(method in METHODS, f"method must be one of {', '.join(METHODS)}; received {method!r}")


def check_weights(weights: Sequence[float] | None, count: int) -> np.ndarray:
    """The weights of so many members, float64 and of the sum 1; None: all the same.

    Raises:
      ValueError: another number of them, one below 0, or none above it.

    >>> check_weights([1, 3], 2).tolist()
    [0.25, 0.75]
    """
    if weights is None:
        return np.full(count, 1.0 / count)
    found = np.asarray(weights, "float64")
    require(found.shape == (count,), f"weights must be one for each of {count} members, received {weights!r}")
    valid = bool(np.isfinite(found).all() and (found >= 0).all() and found.sum() > 0)
    require(valid, f"weights must be at least 0, and one of them above it, received {weights!r}")
    return found / found.sum()


def combine(outputs: np.ndarray, method: Method = "mean", weights: Sequence[float] | None = None) -> np.ndarray:
    """The members' outputs as one.

    Args:
      outputs: shape (members, examples, …, classes): probabilities in [0, 1] that sum to 1 along the last axis, or a
        single one of the second of two classes; for "mean" any numbers.
      method: "mean": the mean. "geometric": the geometric mean of the probabilities, scaled to the sum 1, which is what
        the mean of the logits gives. "vote": the share of the members that give each class the highest probability;
        a member with several highest votes for all of these. Of classes with as many votes, argmax takes the first:
        an odd number of members has fewer such ties.
      weights: of the members, at least 0; None: all the same.

    Returns:
      float64, shape (examples, …, classes).

    Raises:
      ValueError: an unknown method, no members, weights that do not fit, or numbers that are no probabilities.

    >>> outputs = np.array([[[0.6, 0.4]], [[0.9, 0.1]], [[0.2, 0.8]]])
    >>> [combine(outputs, method).round(3).tolist() for method in METHODS]
    [[[0.567, 0.433]], [[0.6, 0.4]], [[0.667, 0.333]]]
    """
    check_method(method)
    outputs = np.asarray(outputs, "float64")
    require(
        outputs.ndim >= 3 and len(outputs) > 0,
        f"outputs must have the shape (members, examples, …, classes), received {outputs.shape}",
    )
    shares = check_weights(weights, len(outputs))
    if method != "mean":
        require(
            bool((outputs >= 0).all() and (outputs <= 1.01).all()),
            f"method={method!r} is for probabilities in [0, 1], received numbers from {outputs.min():.3g} to "
            f"{outputs.max():.3g}: of other numbers only the mean is taken",
        )
    is_single = outputs.shape[-1] == 1
    if method == "vote":
        outputs = outputs > 0.5 if is_single else outputs >= outputs.max(-1, keepdims=True)
    if method != "geometric":
        return np.tensordot(shares, outputs, 1)
    present = np.exp(np.tensordot(shares, np.log(np.maximum(outputs, _FLOOR)), 1))
    if is_single:
        absent = np.exp(np.tensordot(shares, np.log(np.maximum(1.0 - outputs, _FLOOR)), 1))
        return present / (present + absent)
    return present / present.sum(-1, keepdims=True)


def mixture_weights(likelihoods: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """The weights of a mean of probabilities under which the examples are most likely.

    They are found by expectation maximization, which never loses likelihood; the maximum is the only one.

    Args:
      likelihoods: shape (members, examples): the probability in [0, 1] that each member gives to what is true.
      counts: what each example counts, at least 0; None: all the same.

    Returns:
      float64, shape (members,): at least 0, of the sum 1.

    Source: Dempster et al., Maximum Likelihood from Incomplete Data via the EM Algorithm, 1977, section 4.3; van der
    Laan et al., Super Learner, 2007.

    >>> mixture_weights(np.array([[0.9, 0.8, 0.1], [0.5, 0.5, 0.5]])).round(2).tolist()
    [0.36, 0.64]
    """
    likelihoods = np.maximum(np.asarray(likelihoods, "float64"), _FLOOR)
    shares = np.full(likelihoods.shape[1], 1.0) if counts is None else np.asarray(counts, "float64")
    shares = shares / shares.sum()
    weights = np.full(len(likelihoods), 1.0 / len(likelihoods))
    for _ in range(_ROUNDS):
        gains = likelihoods @ (shares / (weights @ likelihoods))
        # No mixture is likelier by more than this, in the logarithm.
        if gains.max() - 1 < _ENOUGH:
            break
        weights = weights * gains
    return weights / weights.sum()


def regression_weights(predictions: np.ndarray, targets: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """The weights of a mean of numbers with the least squared error.

    Args:
      predictions: shape (members, examples).
      targets: shape (examples,).
      counts: what each example counts, at least 0; None: all the same.

    Returns:
      float64, shape (members,): at least 0, of the sum 1.

    Source: Breiman, Stacked Regressions, 1996, section 3.

    >>> regression_weights(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), np.array([1.5, 2.3, 3.1])).round(2).tolist()
    [0.89, 0.11]
    """
    from scipy import optimize

    predictions, targets = np.asarray(predictions, "float64"), np.asarray(targets, "float64")
    roots = np.ones(len(targets)) if counts is None else np.sqrt(np.asarray(counts, "float64"))
    # With weights of the sum 1, the error of the mean is the mean of the errors: numbers near 0, whatever the targets.
    errors = (predictions - targets) * roots
    scale = np.abs(errors).max() or 1.0
    # A last row, far heavier than the others, for the sum.
    rows = np.concatenate([(errors / scale).T, np.full((1, len(errors)), 1e4 * np.sqrt(len(targets)))])
    wanted = np.zeros(len(rows))
    wanted[-1] = rows[-1, 0]
    found, _ = optimize.nnls(rows, wanted)
    return found / found.sum()
