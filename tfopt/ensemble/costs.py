"""What an ensemble costs, beside what it brings."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfopt.channels.propagate import follow_channels
from tfopt.data import Data
from tfopt.evaluation import evaluate

# Metrics of which more is better; of all others, such as errors, less is.
_MORE_IS_BETTER = ("accuracy", "auc", "precision", "recall", "f1", "score")


def scores_of(models: Sequence[keras.Model], data: Data) -> tuple[str, list[float]]:
    """The name of the metric that tells most, and its value for each model on the test split."""
    found = [evaluate(model, data) for model in models]
    name = next((each for each in found[0] if not each.endswith("loss")), "loss")
    return name, [each[name] for each in found]


def gain_note(kind: str, name: str, members: Sequence[float], ensemble: float) -> str:
    """What the ensemble brings over its best member and over the mean of its members.

    >>> gain_note("Seeds", "accuracy", [0.5, 0.75], 0.875)
    'Seeds: accuracy on the test split: the members 0.5000, 0.7500, their mean 0.6250, the best 0.7500, the ensemble \
0.8750: better than the best by 0.1250'
    """
    more = any(each in name for each in _MORE_IS_BETTER)
    best = max(members) if more else min(members)
    gain = ensemble - best if more else best - ensemble
    verdict = f"better than the best by {gain:.4f}" if gain > 0 else f"no better than the best, by {abs(gain):.4f}"
    values = ", ".join(f"{each:.4f}" for each in members)
    return (
        f"{kind}: {name} on the test split: the members {values}, their mean {float(np.mean(members)):.4f}, the best "
        f"{best:.4f}, the ensemble {ensemble:.4f}: {verdict}"
    )


def steps_note(name: str, sums: Sequence[float]) -> str:
    """What each further member of a boosted model brings.

    >>> steps_note("accuracy", [0.5, 0.75])
    'Boosting: accuracy on the test split after 1 member 0.5000, after 2 0.7500'
    """
    first, *others = (f"{value:.4f}" for value in sums)
    rest = "".join(f", after {count} {value}" for count, value in enumerate(others, 2))
    return f"Boosting: {name} on the test split after 1 member {first}{rest}"


def cost_note(members: Sequence[keras.Model], ensemble: keras.Model) -> str:
    """Parameters and multiplications of the ensemble beside those of its largest member."""
    counts = [cost_of(each) for each in members]
    largest = {key: max(each[key] for each in counts) for key in counts[0] if all(key in each for each in counts)}
    parts = [
        f"{value:,} {key} in place of {largest[key]:,} (x{value / largest[key]:.2f})"
        for key, value in cost_of(ensemble).items()
        if largest.get(key)
    ]
    return f"cost: {', '.join(parts)}; latency and file grow with them. DistillInto makes one small model of it"


def cost_of(model: keras.Model) -> Mapping[str, int]:
    """Parameters and, where input sizes are known, multiplications with a weight for one example.

    >>> cost_of(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    {'parameters': 10, 'multiplications': 8}
    """
    flow = follow_channels(model)
    found = flow.bill(model).costs(np.ones(flow.ties.count, bool))
    return {"parameters": found.parameters, **({"multiplications": found.macs} if found.macs else {})}
