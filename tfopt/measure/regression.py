"""Metrics of numbers: MAE, RMSE, MAPE and Pearson's correlation."""

import numpy as np

from tfopt.measure.bootstrap import Statistic
from tfopt.measure.observations import Observations

# Of the whole variance; what is below it in a resample is rounding.
_NO_VARIANCE = 1e-12
# Labels summed at once: those of pictures are many.
_BLOCK = 1_000_000


def values(seen: Observations) -> dict[str, tuple[float | None, str]]:
    """Each metric, or None with the reason.

    Args:
      seen: targets and outputs as numbers.
    """
    from sklearn import metrics

    pair, weights = (seen.targets, seen.outputs), seen.sample_weight
    zeros = int((seen.targets == 0).sum())
    constant = [name for name, each in zip(("targets", "outputs"), pair, strict=True) if each.min() == each.max()]
    mape = None if zeros else float(metrics.mean_absolute_percentage_error(*pair, sample_weight=weights))
    covariance = np.cov(*pair, aweights=seen.weights, ddof=0)
    spread = np.sqrt(covariance[0, 0] * covariance[1, 1])
    undefined = f"{zeros:,} of {len(seen.targets):,} targets are 0, and a share of 0 is not defined"
    same = f"the {' and the '.join(constant)} are all the same number"
    return {
        "mae": (float(metrics.mean_absolute_error(*pair, sample_weight=weights)), ""),
        "rmse": (float(metrics.root_mean_squared_error(*pair, sample_weight=weights)), ""),
        "mape": (mape, undefined if zeros else ""),
        "pearson": (None, same) if constant else (float(covariance[0, 1] / spread), ""),
    }


def statistic(seen: Observations) -> Statistic:
    """The same metrics of resamples: all of them follow from a few sums over the examples.

    Args:
      seen: targets and outputs as numbers.
    """
    # About their means: sums of squares of large numbers would lose the digits that count.
    means = [np.average(each, weights=seen.weights) for each in (seen.targets, seen.outputs)]
    sums = np.zeros((9, seen.examples))
    for start in range(0, len(seen.targets), _BLOCK):
        some = slice(start, start + _BLOCK)
        targets, outputs, weights = seen.targets[some], seen.outputs[some], seen.weights[some]
        error, x, y = np.abs(outputs - targets), targets - means[0], outputs - means[1]
        share = np.divide(error, np.abs(targets), out=np.full_like(error, np.nan), where=targets != 0)
        parts = (np.ones_like(x), error, error**2, share, x, y, x * x, y * y, x * y)
        sums += [np.bincount(seen.example[some], weights * part, seen.examples) for part in parts]
    least = _NO_VARIANCE * (sums[6].sum() * sums[7].sum()) / sums[0].sum() ** 2

    def resampled(counts: np.ndarray) -> dict[str, np.ndarray]:
        totals = sums @ counts
        error, squared, share, x, y, xx, yy, xy = totals[1:] / totals[0]
        product = (xx - x * x) * (yy - y * y)
        varied = product > least
        return {
            "mae": error,
            "rmse": np.sqrt(squared),
            "mape": share,
            "pearson": np.where(varied, (xy - x * y) / np.sqrt(np.where(varied, product, 1.0)), np.nan),
        }

    return resampled
