"""Promises that a stage makes and every later stage must keep, down to the exported file."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfopt.clusters import Clustered
from tfopt.config import Config, require_fraction
from tfopt.patterns import Pattern

Constraint = Callable[[Any], Any]


class Invariant(Protocol):
    """A promise about some variables of a model, known by their paths.

    `constraint(variable)` gives what keeps it during training, or None where the variable is not concerned;
    `check(model)` and `check_tflite(path, model)` return what is broken, in words: empty where it holds.
    `follow(renamed)` is the same promise where a stage gave the variables new paths, old path to new.
    """

    kind: ClassVar[str]

    def constraint(self, variable: keras.Variable) -> Constraint | None:
        """What keeps the promise for a variable in training."""

    def check(self, model: keras.Model) -> list[str]:
        """What is broken in a model."""

    def check_tflite(self, path: Any, model: keras.Model) -> list[str]:
        """What is broken in the file that a model was exported to."""

    def follow(self, renamed: Mapping[str, str]) -> "Invariant":
        """The same promise for variables with new paths."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes the same promise."""


@dataclasses.dataclass(frozen=True, repr=False)
class Sparsity(Config):
    """The weights that are zero stay zero.

    Args:
      targets: by variable path, the fraction of zeros promised, in [0, 1).
      pattern: how these zeros lie; see `Pattern`.

    Raises:
      ValueError: for a fraction outside [0, 1), or an unknown pattern.

    >>> Sparsity({"dense/kernel": 0.8})
    Sparsity(targets={'dense/kernel': 0.8})
    """

    targets: Mapping[str, float]
    pattern: str = "unstructured"
    kind: ClassVar[str] = "sparsity"

    def __post_init__(self) -> None:
        Pattern(self.pattern)
        for path, sparsity in self.targets.items():
            require_fraction(f"the sparsity of {path!r}", sparsity)

    def constraint(self, variable: keras.Variable) -> "FixedMask | None":
        """Multiplies by the pattern of zeros that the variable has now."""
        return FixedMask(variable) if variable.path in self.targets else None

    def check(self, model: keras.Model) -> list[str]:
        """The variables that are missing, or have fewer zeros than promised."""
        found = [variable for variable in model.variables if variable.path in self.targets]
        missing = self.targets.keys() - {variable.path for variable in found}
        broken = [f"{path}: the model has no such variable any more" for path in sorted(missing)]
        for variable in found:
            kernel, promised = keras.ops.convert_to_numpy(variable), self.targets[variable.path]
            zeros = Pattern(self.pattern).structured_zeros(kernel)
            if zeros < zero_count(promised, kernel.size):
                share = zeros / kernel.size
                where = "" if self.pattern == "unstructured" else f" in the pattern {self.pattern}"
                broken.append(f"{variable.path}: {promised:.4f} of zeros were promised{where}, it has {share:.4f}")
        return broken

    def check_tflite(self, path: Any, model: keras.Model) -> list[str]:
        """The variables for which the file has no weight tensor with the promised zeros in their places."""
        from tfopt.tflite.match import missing_zero_patterns

        kernels = {
            variable.path: keras.ops.convert_to_numpy(variable)
            for variable in model.variables
            if variable.path in self.targets
        }
        return [
            f"{name}: no tensor of the file has its {1 - np.count_nonzero(kernels[name]) / kernels[name].size:.4f} "
            "of zeros in their places"
            for name in missing_zero_patterns(path, kernels)
        ]

    def follow(self, renamed: Mapping[str, str]) -> "Sparsity":
        """The same promise for variables with new paths."""
        targets = {renamed.get(path, path): sparsity for path, sparsity in self.targets.items()}
        return Sparsity(targets, self.pattern)

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes the same promise."""
        return {"kind": self.kind, "targets": dict(self.targets), "pattern": self.pattern}


class FixedMask:
    """A constraint that keeps the zeros a variable had when it was made."""

    def __init__(self, variable: keras.Variable) -> None:
        self.mask = replica_variable(keras.ops.convert_to_numpy(variable) != 0, variable)

    def __call__(self, value: Any) -> tf.Tensor:
        """The value with its zeros put back."""
        value = tf.convert_to_tensor(value)
        return value * tf.cast(self.mask, value.dtype)


def replica_variable(value: np.ndarray, like: keras.Variable) -> tf.Variable:
    """A variable that each replica reads and writes for itself, placed and scoped as `like` is.

    Constraints run per replica inside the compiled step, where a mirrored variable could not be assigned.
    """
    strategy = getattr(like.value, "distribute_strategy", None) or tf.distribute.get_strategy()
    with strategy.scope():
        return tf.Variable(
            value.astype("float32"),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )


def zero_count(sparsity: float, size: int) -> int:
    """How many of `size` weights are zero at a sparsity: the nearest whole number, as in the masks.

    >>> zero_count(0.8, 12)
    10
    """
    return round(sparsity * size)


@contextlib.contextmanager
def keeping(model: keras.Model, promises: Sequence[Invariant]) -> Iterator[None]:
    """Attaches the promises to the variables, after the constraints these have; takes them off at the end.

    Compile inside the block: Keras does not look at constraints again once a training step was traced.
    """
    before = [(variable, variable.constraint) for variable in model.trainable_variables]
    try:
        for variable, _ in before:
            add_constraints(
                variable, [part for promise in promises if (part := promise.constraint(variable)) is not None]
            )
        yield
    finally:
        for variable, own in before:
            variable.constraint = own


def add_constraints(variable: keras.Variable, parts: Sequence[Constraint]) -> None:
    """Attaches constraints to a variable, after the one that it has."""
    own = variable.constraint
    if parts:
        variable.constraint = Constraints([*([] if own is None else [own]), *parts])


class Constraints:
    """Several constraints, one after the other."""

    def __init__(self, parts: Sequence[Constraint]) -> None:
        self.parts = tuple(parts)

    def __call__(self, value: Any) -> Any:
        """The value after all of them."""
        for part in self.parts:
            value = part(value)
        return value


def check(model: keras.Model, promises: Sequence[Invariant]) -> list[dict[str, Any]]:
    """A report entry for each promise on the model; raises where one is broken.

    Raises:
      RuntimeError: names each broken promise.
    """
    return _entries(promises, [promise.check(model) for promise in promises], f"the model {model.name!r}")


def check_tflite(path: Any, model: keras.Model, promises: Sequence[Invariant]) -> list[dict[str, Any]]:
    """A report entry for each promise in an exported file; raises where one is broken.

    Raises:
      RuntimeError: names each broken promise.
    """
    return _entries(promises, [promise.check_tflite(path, model) for promise in promises], f"the file {path}")


def _entries(promises: Sequence[Invariant], broken: Sequence[list[str]], where: str) -> list[dict[str, Any]]:
    lost = [f"{promise.kind}: {each}" for promise, words in zip(promises, broken, strict=True) for each in words]
    if lost:
        raise RuntimeError(
            f"{where} lost what an earlier stage promised: {'; '.join(lost)}. Put the stage that changed these "
            "weights before the one that made the promise"
        )
    return [{"invariant": repr(promise), "holds": True, "detail": f"checked on {where}"} for promise in promises]


def from_dict(values: Mapping[str, Any]) -> Invariant:
    """The promise that `to_dict` described."""
    fields = {key: value for key, value in values.items() if key != "kind"}
    kinds = {each.kind: each for each in (Sparsity, Clustered)}
    if values.get("kind") not in kinds:
        raise ValueError(f"unknown kind of invariant {values.get('kind')!r}; there are {', '.join(kinds)}")
    promise: Invariant = kinds[values["kind"]](**fields)
    return promise


def measure_sparsity(model: keras.Model) -> dict[str, float]:
    """The fraction of zeros in every kernel of a model (variables of two or more dimensions), by path."""
    kernels = [variable for variable in model.variables if len(variable.shape) >= 2]
    return {kernel.path: float((keras.ops.convert_to_numpy(kernel) == 0).mean()) for kernel in kernels}
