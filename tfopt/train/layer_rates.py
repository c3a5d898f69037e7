"""Learning rates by layer, for any Keras optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfopt.config import did_you_mean
from tfopt.variables import all_layers


def layer_factors(model: keras.Model, rates: Mapping[str, float]) -> list[float]:
    """What the learning rate of each trainable variable is multiplied by: 1 where nothing is said.

    A name stands for that layer and all inside it. What is no layer's name is the beginning of names. Of several that
    stand for a layer, a name goes before a beginning, the longer beginning before the shorter, and the layer inside
    before the one around it.

    Args:
      model: a built Keras model.
      rates: factors above 0 by name or beginning.

    Raises:
      ValueError: no layer is called so, or has weights that learn.

    >>> model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(2, name=each) for each in ("a1", "a2", "b"))])
    >>> layer_factors(model, {"a": 0.1, "a2": 0.5})
    [0.1, 0.1, 0.5, 0.5, 1.0, 1.0]
    """
    layers = all_layers(model)
    names = [layer.name for layer in layers]
    factors: dict[int, float] = {}
    # The later one wins; layers come before those inside them.
    order = sorted((name for name in rates if name not in names), key=len) + list(
        dict.fromkeys(name for name in names if name in rates)
    )
    for name in order:
        chosen = [layer for layer in layers if (layer.name == name if name in names else layer.name.startswith(name))]
        if not chosen:
            raise ValueError(
                f"layer_rates: no layer of {model.name!r} is called {name!r} or begins so; {did_you_mean(name, names)}"
            )
        variables = [variable for layer in chosen for variable in layer.trainable_variables]
        if not variables:
            raise ValueError(
                f"layer_rates: of the layers of {model.name!r} that {name!r} stands for, none has weights that learn: "
                "leave it out"
            )
        factors.update((id(variable), float(rates[name])) for variable in variables)
    return [factors.get(id(variable), 1.0) for variable in model.trainable_variables]


def with_factors(optimizer: keras.optimizers.Optimizer, factors: Sequence[float]) -> keras.optimizers.Optimizer:
    """The optimizer, which now multiplies the learning rate of each variable by a factor of its own.

    It trains each variable as with that learning rate from the beginning, decay of weights included: an Adam would take
    a scaled gradient for the same. Gradients are clipped together, as before; Keras' MultiOptimizer would clip those of
    each rate by themselves.

    Args:
      optimizer: not built yet; changed in place.
      factors: one for each trainable variable of the model, in its order.
    """
    kind = type(optimizer)
    optimizer.__class__ = type(f"{kind.__name__}ByLayer", (_ByLayer, kind), {"__module__": __name__})
    optimizer.factors, optimizer.factor_now = tuple(factors), 1.0
    return optimizer


class _ByLayer:
    """What an optimizer does otherwise."""

    factors: Sequence[float]
    # Of the variables at hand, while the step is traced.
    factor_now: float

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = self.factors[self._get_variable_index(variable)]  # type: ignore[attr-defined]
        super().update_step(gradient, variable, learning_rate * factor)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        # Keras' optimizers read the rate there, in a loop of their own.
        by_factor: dict[float, list[Any]] = {}
        for variable in variables:
            factor = self.factors[self._get_variable_index(variable)]  # type: ignore[attr-defined]
            by_factor.setdefault(factor, []).append(variable)
        for self.factor_now, group in by_factor.items():
            super()._apply_weight_decay(group)  # type: ignore[misc]
        self.factor_now = 1.0

    def _get_current_learning_rate(self) -> Any:
        rate = super()._get_current_learning_rate()  # type: ignore[misc]
        return rate if self.factor_now == 1.0 else rate * self.factor_now
