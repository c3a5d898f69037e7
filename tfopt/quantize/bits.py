"""`WeightBits`: how many bits the weights of each layer get."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfopt.config import require
from tfopt.variables import all_layers, select_layers

WEIGHT_BITS = tuple(range(2, 9))
ACTIVATION_BITS = (8, 16)

BitSelection = Sequence[str] | Mapping[str, int] | Callable[[keras.layers.Layer], bool | int | None] | None


class InInt8(int):
    """A number of bits for weights that the file holds in int8, even where it is 4.

    As `weight_bits` it says so of the layers that have a number of their own, too.
    Convolutions compute with int8 as fast as with 8 bits, with packed 4 bits slower. Before gzip the file is then as
    large as with 8 bits, after gzip nearly as small as a packed one.

    >>> InInt8(4) == 4, InInt8(4)
    (True, InInt8(4))
    """

    def __repr__(self) -> str:
        return f"InInt8({int(self)})"


class WeightBits:
    """The number of bits for the weights of each layer of a model.

    Args:
      model: the float model.
      weight_bits: 2 to 8.
      layers: None: all layers have `weight_bits`. A list of names: these have `weight_bits`, the others 8. A dict from
        names to bits: these have as many, the others `weight_bits`. A function of a layer: it gives True for
        `weight_bits`, False for 8, or a number of bits.

    Raises:
      ValueError: bits other than 2 to 8, a name that no layer has, or a selection of nothing.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(2, name="b")])
    >>> bits = WeightBits(model, 8, {"b": 4})
    >>> [bits(layer) for layer in model.layers]
    [8, 4]
    """

    def __init__(self, model: keras.Model, weight_bits: int, layers: BitSelection) -> None:
        require_bits("weight_bits", weight_bits)
        self.model, self.others, self._packs = model, weight_bits, not isinstance(weight_bits, InInt8)
        self._chosen: dict[int, int] = {}
        self._asked: set[int] = set()
        self._names: Sequence[str] = ()
        if callable(layers):
            answers = [(layer, layers(layer)) for layer in all_layers(model)]
            self._chosen = {id(layer): self._number(layer, answer) for layer, answer in answers if answer is not None}
            require(
                any(answer is not False and answer is not None for _, answer in answers),
                f"layers selects none of the {len(answers)} layers of the model {model.name!r}",
            )
        elif isinstance(layers, Mapping):
            require(bool(layers), "layers is an empty dict: it selects nothing; leave it out to give all the same bits")
            self._names = list(layers)
            for name, bits in layers.items():
                self._choose(name, bits)
        elif layers is not None:
            select_layers(model, layers)
            self._names, self.others = list(layers), 8
            for name in layers:
                self._choose(name, weight_bits)

    def __call__(self, layer: keras.layers.Layer) -> int:
        """The bits of a layer's weights."""
        self._asked.add(id(layer))
        return int(self._chosen.get(id(layer), self.others))

    def packed(self, layer: keras.layers.Layer) -> bool:
        """Whether the file holds a layer's weights of 4 bits as such, and not in int8."""
        return self._packs and not isinstance(self._chosen.get(id(layer)), InInt8)

    def check_used(self) -> None:
        """Raises a ValueError where a layer was named whose weights nobody asked about: it has none to quantize."""
        for name in self._names:
            require(
                any(id(layer) in self._asked for layer in select_layers(self.model, [name])),
                f"layers names {name!r}, which has no weights to quantize: name convolutions, dense layers, "
                "embeddings and the like",
            )

    def _choose(self, name: str, bits: int) -> None:
        require_bits(f"the number of bits for {name!r}", bits)
        self._chosen |= {id(layer): bits for layer in select_layers(self.model, [name])}

    def _number(self, layer: keras.layers.Layer, answer: Any) -> int:
        if isinstance(answer, bool):
            return self.others if answer else 8
        require_bits(f"the number of bits for {layer.name!r}", answer)
        return answer


def require_bits(what: str, bits: Any) -> None:
    """Raises a ValueError for a number of bits that weights cannot have."""
    require(bits in WEIGHT_BITS and not isinstance(bits, bool), f"{what} must be from 2 to 8, received {bits!r}")
