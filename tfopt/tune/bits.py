"""How many bits the weights of each layer bear."""

import dataclasses
from collections.abc import Mapping

import keras

from tfopt.analyze.sensitivity import sensitivity
from tfopt.data import Data
from tfopt.kernels import has_kernel
from tfopt.quantize.convolve import TRANSPOSED
from tfopt.tune.goal import Goal

_LEVELS, _PACKED = (8, 6, 5, 4, 3), (8, 4)
# What one layer alone may lose with fewer bits, before training, so that it has them.
_DROP = 0.02


@dataclasses.dataclass(frozen=True)
class Bits:
    """How many bits layers bear; by itself: 8 each.

    Args:
      layers: those with fewer than 8, with their number.
      drops: what each costs alone, at least 0.
      packed: whether the file holds 4 bits as such.
    """

    layers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    drops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    packed: bool = False


def fewer_bits(model: keras.Model, data: Data, goal: Goal, notes: list[str]) -> Bits | None:
    """The bits that layers bear, where they save what counts; None: they do not.

    Packed ones make the file smaller, and slow; others save after gzip only, and cost no time.
    """
    packed = bool(goal.costs) and goal.max_latency_ms is None
    if goal.costs and not packed and goal.max_gzip_bytes is None:
        return None

    def bears(layer: keras.Layer) -> bool:
        """Whether LiteRT has an operator for it."""
        return has_kernel(layer) and not isinstance(layer, (keras.layers.Embedding, *(TRANSPOSED if packed else ())))

    found = sensitivity(model, data, "bits", _PACKED if packed else _LEVELS, bears)
    chosen = {layer: int(bits) for layer, bits in found.targets(_DROP).items() if bits < 8}
    if not chosen:
        notes.append(f"fewer bits: each layer alone loses more than {_DROP:g} with them, before training")
        return None
    return Bits(chosen, {layer: max(0.0, found.drop(layer, bits)) for layer, bits in chosen.items()}, packed)
