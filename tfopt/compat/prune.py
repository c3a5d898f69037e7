"""`prune_low_magnitude` and `strip_pruning`: TFMOT's pruning of Keras 3 layers and models."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
from absl import logging

from tfopt.compat.policy import PruningPolicy
from tfopt.compat.rebuild import copy_layer, layers_of, rebuild, require_graph
from tfopt.compat.schedules import ConstantSparsity, schedule_from
from tfopt.compat.wrapper import LayerWrapper
from tfopt.config import require
from tfopt.invariants import add_constraints
from tfopt.kernels import find_kernels
from tfopt.patterns import Pattern
from tfopt.prune.masks import MaskGroup
from tfopt.quantize.activations import is_keras
from tfopt.schedules import final_sparsity

_DEFAULT = ConstantSparsity(0.5, 0)
_POOLINGS = ("AVG", "MAX")


class PrunableLayer:
    """A base class for layers of your own that says which of their weights are pruned.

    >>> class Head(keras.layers.Dense, PrunableLayer):
    ...     def get_prunable_weights(self):
    ...         return [self.kernel]
    """

    def get_prunable_weights(self) -> list[keras.Variable]:
        """The variables to prune."""
        raise NotImplementedError(f"{type(self).__name__} must say which of its weights are pruned")


@keras.saving.register_keras_serializable("tfopt")
class PruneLowMagnitude(LayerWrapper):
    """A layer whose smallest weights become zero in training; made by `prune_low_magnitude`.

    The masks are constraints on the variables, from the first step with `UpdatePruningStep` on. `pruning_step`, which
    is saved with the model, tells how far the schedule is; -1: not begun.
    """

    prefix = "prune_low_magnitude"

    def __init__(
        self,
        layer: keras.Layer,
        pruning_schedule: Any = _DEFAULT,
        block_size: Sequence[int] = (1, 1),
        block_pooling_type: str = "AVG",
        sparsity_m_by_n: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        pattern = _pattern(block_size, block_pooling_type, sparsity_m_by_n)
        if pattern.fixed_sparsity is not None and pruning_schedule == _DEFAULT:
            pruning_schedule = ConstantSparsity(pattern.fixed_sparsity, 0)
        _check_schedule(pruning_schedule, pattern)
        super().__init__(layer, **kwargs)
        self.pruning_schedule, self.pattern = pruning_schedule, pattern
        self.block_size, self.block_pooling_type = tuple(block_size), block_pooling_type
        self.sparsity_m_by_n = None if sparsity_m_by_n is None else tuple(sparsity_m_by_n)
        # There between the begin and the end of a training with UpdatePruningStep.
        self.masks: AttachedMasks | None = None
        require_prunable(self.layer)

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, and the count of steps."""
        super().build(input_shape)
        self.pruning_step = self.add_weight(
            name="pruning_step",
            shape=(),
            dtype="int64",
            initializer=keras.initializers.Constant(-1),
            trainable=False,
            aggregation="only_first_replica",
        )

    def call(self, inputs: Any = None, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """The layer's outputs.

        Raises:
          RuntimeError: in training without `UpdatePruningStep`, which would prune nothing.
        """
        if training and self.masks is None and self.prunable_variables():
            raise RuntimeError(
                f"{self.name!r} is trained without the callback UpdatePruningStep, so nothing would be pruned: pass "
                "callbacks=[UpdatePruningStep()] to fit; in a loop of your own call its set_model(model) and "
                "on_train_begin() first"
            )
        return super().call(inputs, *args, **kwargs)

    def prunable_variables(self) -> list[keras.Variable]:
        """The variables that training sets to zero: what the layer names, else the kernels that are trainable."""
        if hasattr(self.layer, "get_prunable_weights"):
            return [each for each in self.layer.get_prunable_weights() if each.trainable]
        return find_kernels(self.layer)[0]

    def begin(self, iterations: keras.Variable) -> None:
        """Attaches the masks to the variables.

        Args:
          iterations: the optimizer's own count of steps.
        """
        self.end()
        variables = self.prunable_variables()
        for variable in variables:
            self.pattern.require_fits(tuple(variable.shape), variable.path)
        self.masks = AttachedMasks(variables, self.pruning_schedule, iterations, self.pattern)

    def start(self) -> None:
        """Sets the masks and weights to what they are after the steps made by now, before the first step."""
        assert self.masks is not None
        # Weights, steps and iterations may have been restored from a checkpoint since `begin`.
        self.masks.origin = int(self.masks.iterations.numpy()) - max(0, int(self.pruning_step.numpy()))
        self.masks.start(self.step(), {})

    def step(self) -> int:
        """The steps that the schedule has made."""
        assert self.masks is not None
        return int(self.masks.iterations.numpy()) - self.masks.origin

    def end(self) -> None:
        """Takes the masks off the variables, which stay as they are."""
        if self.masks is not None:
            self.masks.detach()
        self.masks = None

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {
            **super().get_config(),
            "pruning_schedule": self.pruning_schedule.get_config(),
            "block_size": list(self.block_size),
            "block_pooling_type": self.block_pooling_type,
            "sparsity_m_by_n": None if self.sparsity_m_by_n is None else list(self.sparsity_m_by_n),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "PruneLowMagnitude":
        """From what `get_config` gave."""
        return super().from_config(
            {**config, "pruning_schedule": schedule_from(config["pruning_schedule"])}, custom_objects
        )


class AttachedMasks(MaskGroup):
    """The masks of a layer's variables, as constraints on them until `detach`."""

    def __init__(
        self, variables: Sequence[keras.Variable], schedule: Any, iterations: keras.Variable, pattern: Pattern
    ) -> None:
        super().__init__(variables, schedule, iterations, 0, pattern, "magnitude", False, [1.0] * len(variables))
        self._before = [variable.constraint for variable in variables]
        for index, variable in enumerate(variables):
            add_constraints(variable, [functools.partial(self.step, index)])

    def detach(self) -> None:
        """Takes them off; the variables stay as they are."""
        for variable, before in zip(self.variables, self._before, strict=True):
            variable.constraint = before


def prune_low_magnitude(
    to_prune: Any,
    pruning_schedule: Any = _DEFAULT,
    block_size: Sequence[int] = (1, 1),
    block_pooling_type: str = "AVG",
    pruning_policy: PruningPolicy | None = None,
    sparsity_m_by_n: Sequence[int] | None = None,
    **kwargs: Any,
) -> Any:
    """A model, layer or list of layers whose smallest weights become zero in training.

    Compile what it returns, train it with `UpdatePruningStep` among the callbacks, and call `strip_pruning`. What you
    pass stays as it is: layers that have weights are copied.

    Args:
      to_prune: a functional or Sequential model, a layer, or a list of layers.
      pruning_schedule: when, and how many; fractions in [0, 1).
      block_size: inputs x outputs of the blocks that become zero together; other ranks than 2 count as such a matrix.
      block_pooling_type: "AVG", the mean of a block's magnitudes; "MAX" for blocks of one weight only.
      pruning_policy: which layers of a model; None: all that have kernels, depthwise ones left out.
      sparsity_m_by_n: (m, n): m zeros among n weights in a row of each output's inputs, such as (2, 4).
      **kwargs: for the wrapper around a single layer, such as input_shape.

    Returns:
      The same kind of object; a model is not compiled. In it, layers with kernels are `PruneLowMagnitude` wrappers.

    Raises:
      TypeError: keyword arguments for a model.
      ValueError: nothing can be pruned; a layer of your own does not say what; arguments contradict each other.

    Source: Zhu and Gupta, To prune, or not to prune, 2017, arXiv:1710.01878.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head"), keras.layers.ReLU()])
    >>> [layer.name for layer in prune_low_magnitude(model).layers]
    ['prune_low_magnitude_head', 're_lu...']
    """
    params: dict[str, Any] = {
        "pruning_schedule": pruning_schedule,
        "block_size": block_size,
        "block_pooling_type": block_pooling_type,
        "sparsity_m_by_n": sparsity_m_by_n,
    }

    def wrap(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, PruneLowMagnitude | keras.layers.InputLayer):
            return layer
        if pruning_policy is not None and not pruning_policy.allow_pruning(layer):
            return copy_layer(layer)
        require_prunable(layer)
        return PruneLowMagnitude(layer, **params) if _may_have_kernels(layer) else copy_layer(layer)

    if isinstance(to_prune, keras.Model):
        if kwargs:
            raise TypeError(
                f"prune_low_magnitude takes no {', '.join(kwargs)}: keyword arguments beyond its own are for the "
                "wrapper around a single layer, and a model was passed"
            )
        require_graph(to_prune)
        if pruning_policy is not None:
            pruning_policy.ensure_model_supports_pruning(to_prune)
        pruned = rebuild(to_prune, wrap)
        require(
            bool(layers_of(pruned, PruneLowMagnitude)),
            f"the model {to_prune.name!r} has no layer that can be pruned: none has a kernel, or the policy "
            "allows none",
        )
        return pruned
    require(
        pruning_policy is None,
        "pruning_policy looks at a whole model: pass the model, or leave the policy out for single layers",
    )
    if isinstance(to_prune, list):
        return [wrap(layer) for layer in to_prune]
    require(
        isinstance(to_prune, keras.Layer),
        f"expected a Keras 3 model, a layer or a list of layers, received {type(to_prune).__module__}."
        f"{type(to_prune).__name__}",
    )
    if isinstance(to_prune, PruneLowMagnitude):
        return to_prune
    return PruneLowMagnitude(to_prune, **params, **kwargs)


def strip_pruning(model: keras.Model) -> keras.Model:
    """The plain model, with the weights and zeros of the pruned one; not compiled.

    Args:
      model: from `prune_low_magnitude`, or with layers from it; it is left as it is.

    Raises:
      ValueError: it is no functional or Sequential model, or has no pruned layer.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
    >>> [layer.name for layer in strip_pruning(prune_low_magnitude(model)).layers]
    ['head']
    """
    require_graph(model)
    pruned = layers_of(model, PruneLowMagnitude)
    require(bool(pruned), f"the model {model.name!r} has no layer from prune_low_magnitude to strip")
    behind = [layer.name for layer in pruned if layer.built and int(layer.pruning_step.numpy()) < 0]
    if behind:
        logging.warning(
            "%s of %r were never trained with UpdatePruningStep: their weights are not pruned",
            ", ".join(behind),
            model.name,
        )
    return rebuild(model, lambda layer: copy_layer(layer.layer if isinstance(layer, PruneLowMagnitude) else layer))


def prune_scope() -> Any:
    """Inside it, Keras loads models with pruned layers also from HDF5 files."""
    return keras.utils.CustomObjectScope({"PruneLowMagnitude": PruneLowMagnitude})


def require_prunable(layer: keras.Layer) -> None:
    """Raises a ValueError for a layer of one's own with weights that does not say which of them are pruned."""
    says = hasattr(layer, "get_prunable_weights")
    require(
        says or is_keras(layer) or (layer.built and not layer.weights),
        f"the layer {layer.name!r} is of a class of your own, {type(layer).__name__}, which does not say what is "
        "pruned of it: derive it from tfopt.compat.sparsity.keras.PrunableLayer and define "
        "get_prunable_weights(self), which returns its variables to prune, an empty list for none",
    )


def _may_have_kernels(layer: keras.Layer) -> bool:
    return not layer.built or hasattr(layer, "get_prunable_weights") or bool(find_kernels(layer)[0])


def _pattern(block_size: Any, pooling: Any, m_by_n: Any) -> Pattern:
    block = _two_numbers("block_size", block_size)
    require(pooling in _POOLINGS, f"block_pooling_type must be 'AVG' or 'MAX', received {pooling!r}")
    if m_by_n is not None:
        m, n = _two_numbers("sparsity_m_by_n", m_by_n)
        require(block == (1, 1), f"block_size={block} and sparsity_m_by_n={(m, n)} exclude each other: leave one out")
        return Pattern(f"{n - m}:{n}")
    require(
        block == (1, 1) or pooling == "AVG",
        "block_pooling_type='MAX' is not there for blocks: tfopt ranks them by the mean of their magnitudes, 'AVG'",
    )
    return Pattern() if block == (1, 1) else Pattern(f"{block[0]}x{block[1]}")


def _two_numbers(name: str, value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    require(
        is_pair and all(isinstance(each, int) and each >= 1 for each in value),
        f"{name} must be two whole numbers from 1, such as (2, 4); received {value!r}",
    )
    return int(value[0]), int(value[1])


def _check_schedule(schedule: Any, pattern: Pattern) -> None:
    if not callable(schedule):
        raise TypeError(
            f"pruning_schedule must be a ConstantSparsity, a PolynomialDecay or another PruningSchedule, received "
            f"{schedule!r}"
        )
    final, fixed = final_sparsity(schedule), pattern.fixed_sparsity
    require(
        fixed is None or final is None or abs(final - fixed) < 1e-6,
        f"sparsity_m_by_n asks for a sparsity of {fixed}, the schedule ends at {final}: make them equal, or leave the "
        "schedule out",
    )
